"""What the student saw and how well it guessed: pictures, their masks, and the cosine of every patch."""

# B batch, N patches, S side of the image

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.data.loader import Make, eval_batches
from vfm.data.source import Source
from vfm.eval.semantic import GAP, NUM_PICTURES, SIDE, magnified, side_by_side
from vfm.panels import ImagesPanel, Picture
from vfm_eva.masks import Masks
from vfm_eva.task import EvaTask

STRIPES = (215, 245)  # greys in turn


def cosine_sheet(task: EvaTask, source: Source, make: Make, masks: Masks, directory: Path) -> ImagesPanel:
    """Writes pictures into `directory`, each as it is, masked, and as its map of cosines; returns their panel."""
    (batch,) = masks.added([next(iter(eval_batches(source, make, min(NUM_PICTURES, len(source)))))])
    device = task.mask_token.device
    on_device = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    cosines = task.eval().cosine_map(on_device).cpu()
    low = np.floor(10 * cosines.min().item()) / 10
    high = max(np.ceil(10 * cosines.max().item()) / 10, low + 0.1)
    folder = directory / "pictures"
    folder.mkdir(exist_ok=True)
    pictures = []
    for number, (image, bool_mask, cosine) in enumerate(zip(batch["images"], batch["bool_mask"], cosines, strict=True)):
        file = f"cosine-{number}.png"
        Image.fromarray(triptych(image, bool_mask, (cosine - low) / (high - low), task.grid)).save(folder / file)
        pictures.append(Picture(file=f"pictures/{file}", caption=f"cosine {cosine[bool_mask].mean():.2f} where masked"))
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
    colours = (255 * colormaps["magma"](_on_pixels(heat, grid, side))[..., :3]).astype(np.uint8)
    return side_by_side(picture, masked, colours)


def _stripes(side: int) -> NDArray[np.uint8]:
    """Fills masked patches, (S', S', 1): no picture looks like it, a plain grey may be a picture's own."""
    diagonal = np.add.outer(np.arange(side), np.arange(side)) * SIDE // side
    return np.where(diagonal // 3 % 2, *STRIPES).astype(np.uint8)[..., None]


def _on_pixels(values: Tensor, grid: tuple[int, int], side: int) -> NDArray[np.float32]:
    plane = values.float().reshape(1, 1, *grid)
    return F.interpolate(plane, size=(side, side), mode="nearest")[0, 0].numpy()
