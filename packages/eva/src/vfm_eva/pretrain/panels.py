"""Draw images, their masks, and the cosine of each patch's prediction."""

# B batch, N patches, S side of the image

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.data import Make, Source, eval_batches, map_tensors
from vfm.eval import MAP_GAP, MAP_SIDE, NUM_IMAGES, enlarge, side_by_side
from vfm.plugin import ImagesPanel, PanelImage
from vfm_eva.pretrain.masks import Masks
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.images import EvaViews

STRIPES = (215, 245)  # alternating greys


def cosine_sheet(task: EvaTask, source: Source, make: Make[EvaViews], masks: Masks, directory: Path) -> ImagesPanel:
    """Show images, masked images and cosine maps side by side.

    Args:
        task: The trained task.
        source: Images to show.
        make: Makes the inputs of an image.
        masks: Draws the masks.
        directory: Folder to write the images into.
    """
    first = next(iter(eval_batches(source, make, min(NUM_IMAGES, len(source)))))
    (batch,) = masks.add([first])
    inputs = batch.inputs
    device = task.mask_token.device
    cosines = task.eval().cosine_map(map_tensors(inputs, lambda tensor: tensor.to(device))).cpu()
    # To tenths, so that the note beneath has round numbers for the ends of the scale.
    low = np.floor(10 * cosines.min().item()) / 10
    # At least a tenth wide, or equal cosines would divide by zero.
    high = max(np.ceil(10 * cosines.max().item()) / 10, low + 0.1)
    sheets = []
    for number, (image, bool_mask, cosine) in enumerate(zip(inputs.images, inputs.bool_mask, cosines, strict=True)):
        drawn = triptych(image, bool_mask, (cosine - low) / (high - low), task.grid)
        if task.is_masked:
            caption = f"mean cosine {cosine[bool_mask].mean():.2f} of masked patches"
        else:
            caption = f"mean cosine {cosine.mean():.2f} of all patches"
        sheets.append(PanelImage(file=_saved(drawn, directory, f"cosine-{number}"), caption=caption))
    note = (
        "The student's input, its mask (striped), and the cosine between prediction and target of every patch:"
        f" {low:.1f} is black, {high:.1f} is pale yellow."
    )
    title = "Masked patches and their predictions"
    return ImagesPanel(title=title, note=note, pictures=sheets, width=3 * MAP_SIDE + 2 * MAP_GAP)


def triptych(image: Tensor, bool_mask: Tensor, heat: Tensor, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw image, masked image and heat map side by side.

    Args:
        image: (3, S, S) uint8.
        bool_mask: (N,), True = masked.
        heat: (N,), in [0, 1].
        grid: Rows and columns of the N patches.

    Returns:
        (S', 3 S' + 2 MAP_GAP, 3) uint8, where S' is a multiple of S and at least `MAP_SIDE`.
    """
    enlarged = enlarge(image.permute(1, 2, 0).numpy())
    side = len(enlarged)
    hidden = _on_pixels(bool_mask, grid, side) > 0.5
    masked = np.where(hidden[..., None], _stripes(side), enlarged)
    return side_by_side(enlarged, masked, _heat(heat, grid, side))


def _saved(drawn: NDArray[np.uint8], directory: Path, name: str) -> str:
    """Write an image, and return its path relative to `directory`, as panels store it."""
    file = f"pictures/{name}.png"
    (directory / file).parent.mkdir(exist_ok=True)
    Image.fromarray(drawn).save(directory / file)
    return file


def _heat(values: Tensor, grid: tuple[int, int], side: int) -> NDArray[np.uint8]:
    """Draw patch values, (N,), in [0, 1], as a colour image (side, side, 3)."""
    colours: NDArray[np.uint8] = (255 * colormaps["magma"](_on_pixels(values, grid, side))[..., :3]).astype(np.uint8)
    return colours


def _stripes(side: int) -> NDArray[np.uint8]:
    """Draw the fill of masked patches, (S', S', 1).

    Unlike plain grey, stripes are not mistaken for the image.
    """
    diagonal = np.add.outer(np.arange(side), np.arange(side)) * MAP_SIDE // side
    return np.where(diagonal // 3 % 2, *STRIPES).astype(np.uint8)[..., None]


def _on_pixels(values: Tensor, grid: tuple[int, int], side: int) -> NDArray[np.float32]:
    plane = values.float().reshape(1, 1, *grid)
    return F.interpolate(plane, size=(side, side), mode="nearest")[0, 0].numpy()
