"""What the student saw and how well it guessed: pictures, their masks, and the cosine of every patch."""

# B batch, N patches, S side of the image

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.data.loader import eval_batches
from vfm.data.source import Source
from vfm.panels import ImagesPanel, Picture
from vfm_eva.images import MakeMasked
from vfm_eva.task import EvaTask

NUM_PICTURES = 8
GREY = 128
GAP = 4  # pixels between the three pictures of one sample


def cosine_sheet(task: EvaTask, source: Source, make: MakeMasked, directory: Path) -> ImagesPanel:
    """Writes pictures into `directory`, each as it is, masked, and as its map of cosines; returns their panel."""
    batch = next(iter(eval_batches(source, make, min(NUM_PICTURES, len(source)))))
    task.eval()
    device = task.mask_token.device
    images, bool_mask = batch["images"].to(device), batch["bool_mask"].to(device)
    cosines = task.cosine_map(images, bool_mask)
    folder = directory / "pictures"
    folder.mkdir(exist_ok=True)
    pictures = []
    for index, key in enumerate(batch["keys"]):
        triple = sample_triple(images[index].cpu(), bool_mask[index].cpu(), cosines[index].cpu(), task.grid)
        Image.fromarray(triple).save(folder / f"cosine-{index}.png")
        masked = cosines[index][bool_mask[index]].mean().item()
        pictures.append(Picture(file=f"pictures/cosine-{index}.png", caption=f"{key}: {masked:.2f} on masked patches"))
    note = (
        "Each picture as the student meets it, with its mask, and the cosine between prediction and target "
        "for every patch: dark 0, bright 1."
    )
    return ImagesPanel(title="What was hidden and how well it was guessed", note=note, pictures=pictures, width=330)


def sample_triple(image: Tensor, bool_mask: Tensor, cosine: Tensor, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Image, masked image and cosine map side by side.

    Args:
        image: (3, S, S) uint8.
        bool_mask: (N,), True = masked.
        cosine: (N,), in [-1, 1].

    Returns:
        (S', 3 S' + 2 GAP, 3) uint8, where S' is at least 96 pixels so that small pictures can be seen.
    """
    picture = image.permute(1, 2, 0).numpy()
    side = picture.shape[0]
    hidden = _on_pixels(bool_mask.float(), grid, side) > 0.5
    masked = np.where(hidden[..., None], GREY, picture).astype(np.uint8)
    heat = colormaps["magma"](_on_pixels(cosine.clamp(0, 1), grid, side))[..., :3]
    factor = -(-96 // side)
    parts = [
        np.kron(part, np.ones((factor, factor, 1), np.uint8))
        for part in (picture, masked, (heat * 255).astype(np.uint8))
    ]
    gap = np.full((side * factor, GAP, 3), 255, np.uint8)
    return np.concatenate([parts[0], gap, parts[1], gap, parts[2]], axis=1)


def _on_pixels(values: Tensor, grid: tuple[int, int], side: int) -> NDArray[np.float32]:
    plane = values.float().reshape(1, 1, *grid)
    return torch.nn.functional.interpolate(plane, size=(side, side), mode="nearest")[0, 0].numpy()
