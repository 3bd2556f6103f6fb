"""What the student saw and how well it guessed: pictures, masks, cosines of patches."""

# B batch, N patches, S side of the image

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.data.eval_loader import eval_batches
from vfm.data.loader import Batch, Make
from vfm.data.source import Source
from vfm.eval.semantic import GAP, NUM_PICTURES, SIDE, magnified, pca_sheet, side_by_side
from vfm.panels import ImagesPanel, Picture
from vfm.stage import Context
from vfm_eva.masks import Masks
from vfm_eva.task import EvaTask

STRIPES = (215, 245)  # greys in turn


def show(task: EvaTask, source: Source, make: Make, masks: Masks, ctx: Context) -> None:
    """Leaves the sheets of a training that is done: what it guessed, what its patches say and where it looks."""
    ctx.panel(cosine_sheet(task, source, make, masks, ctx.directory))
    ctx.panel(pca_sheet(task.encoder(), source, ctx.directory))


def cosine_sheet(task: EvaTask, source: Source, make: Make, masks: Masks, directory: Path) -> ImagesPanel:
    """Writes pictures into `directory`, each as it is, masked, and as its map of cosines; returns their panel."""
    (batch,) = masks.added([_first(source, make)])
    device = task.mask_token.device
    on_device = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    cosines = task.eval().cosine_map(on_device).cpu()
    low = np.floor(10 * cosines.min().item()) / 10
    high = max(np.ceil(10 * cosines.max().item()) / 10, low + 0.1)
    pictures = []
    for number, (image, bool_mask, cosine) in enumerate(zip(batch["images"], batch["bool_mask"], cosines, strict=True)):
        drawn = triptych(image, bool_mask, (cosine - low) / (high - low), task.grid)
        caption = f"cosine {cosine[bool_mask].mean():.2f} where masked"
        pictures.append(Picture(file=_saved(drawn, directory, f"cosine-{number}"), caption=caption))
    note = (
        "Each picture as the student meets it, its mask in stripes, and the cosine between prediction and target of "
        f"every patch: {low:.1f} is black, {high:.1f} is pale yellow."
    )
    title = "What was hidden and how well it was guessed"
    return ImagesPanel(title=title, note=note, pictures=pictures, width=3 * SIDE + 2 * GAP)


def triptych(image: Tensor, bool_mask: Tensor, heat: Tensor, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Image, masked image and heat map side by side.

    Args:
        image: (3, S, S) uint8.
        bool_mask: (N,), True = masked.
        heat: (N,), in [0, 1].
        grid: rows and columns of the N patches.

    Returns:
        (S', 3 S' + 2 GAP, 3) uint8, where S' is a multiple of S and at least `SIDE`.
    """
    picture = magnified(image.permute(1, 2, 0).numpy())
    side = len(picture)
    hidden = _on_pixels(bool_mask, grid, side) > 0.5
    masked = np.where(hidden[..., None], _stripes(side), picture)
    return side_by_side(picture, masked, _heat(heat, grid, side))


def _first(source: Source, make: Make) -> Batch:
    return next(iter(eval_batches(source, make, min(NUM_PICTURES, len(source)))))


def _saved(drawn: NDArray[np.uint8], directory: Path, name: str) -> str:
    """The place of a picture in a panel, once it is written."""
    file = f"pictures/{name}.png"
    (directory / file).parent.mkdir(exist_ok=True)
    Image.fromarray(drawn).save(directory / file)
    return file


def _heat(values: Tensor, grid: tuple[int, int], side: int) -> NDArray[np.uint8]:
    """Values of patches, (N,), in [0, 1], as an image (side, side, 3)."""
    colours: NDArray[np.uint8] = (255 * colormaps["magma"](_on_pixels(values, grid, side))[..., :3]).astype(np.uint8)
    return colours


def _stripes(side: int) -> NDArray[np.uint8]:
    """Fills masked patches, (S', S', 1): no picture looks like it, a plain grey may be a picture's own."""
    diagonal = np.add.outer(np.arange(side), np.arange(side)) * SIDE // side
    return np.where(diagonal // 3 % 2, *STRIPES).astype(np.uint8)[..., None]


def _on_pixels(values: Tensor, grid: tuple[int, int], side: int) -> NDArray[np.float32]:
    plane = values.float().reshape(1, 1, *grid)
    return F.interpolate(plane, size=(side, side), mode="nearest")[0, 0].numpy()
