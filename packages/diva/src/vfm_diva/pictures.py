"""What the stages leave to look at: whether a prior feels its condition, and what it draws before and after tuning."""

# B batch, D width of the joint space, S side of the picture

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.data.loader import Batch, TrainingData
from vfm.models.clip import evaluating
from vfm.panels import ImagesPanel, Picture, TablePanel
from vfm_diva.excerpt import excerpt, usable
from vfm_diva.generator import Generator
from vfm_diva.prior_task import PriorTask
from vfm_diva.sampling import draw
from vfm_diva.tune_task import TuneTask

NUM_BATCHES, BATCH_SIZE = 2, 128
NUM_DRAWN = 8
SHOWN_SIDE = 96  # pixels that a picture is at least shown at
GAP = 4  # pixels between pictures side by side


@torch.no_grad()
def felt_condition(task: PriorTask, data: TrainingData) -> TablePanel:
    """How much the loss rises where the condition is another picture's, or none.

    A prior that does not feel its condition has nothing to teach.
    """
    batches = list(excerpt(data, task, num_batches=NUM_BATCHES, batch_size=BATCH_SIZE))
    count = sum(len(batch["keys"]) for batch in batches)
    rows: list[list[str | float | int | None]] = []
    told = (
        {"caption's embedding": True, "image's embedding": False} if task.condition_map else {"caption's states": True}
    )
    for name, is_text in told.items():
        own, other, empty = condition_losses(task, batches, is_text=is_text)
        rows.append([name, round(own, 4), round(other, 4), round(empty, 4), round(100 * (other / own - 1), 1)])
    return TablePanel(
        title="What the prior feels of its condition",
        note=f"Denoising loss on {count} pictures with the same noise, told their own condition, that of another "
        "picture, or none.",
        order=20,
        columns=["told", "own", "another's", "none", "rise with another's, %"],
        rows=rows,
    )


@torch.no_grad()
def condition_losses(task: PriorTask, batches: Iterable[Batch], *, is_text: bool) -> tuple[float, float, float]:
    """Mean losses with the own condition, that of the next picture in the batch, and none."""
    sums, count = torch.zeros(3), 0
    with evaluating(task):
        for batch in batches:
            batch = {**batch, "is_text": torch.full_like(batch["is_text"], is_text)}
            own = task.own(batch)
            sums += torch.stack(
                [task.errors(batch, told).sum().cpu() for told in (own, own.of_another(), task.nothing(own))]
            )
            count += len(own)
    with_own, with_other, with_none = (sums / count).tolist()
    return with_own, with_other, with_none


@torch.no_grad()
def drawn_from_captions(task: PriorTask, data: TrainingData, language: str, directory: Path) -> ImagesPanel:
    """Writes pictures into `directory`: each of the data beside what the prior draws of its first caption."""
    shown = list(islice(usable(data), NUM_DRAWN))
    pictures = _pictures(task.generator, {name: torch.stack([made[name] for _, made in shown]) for name in shown[0][1]})
    captions = [sample.texts[language][0] for sample, _ in shown]
    with evaluating(task):
        told = task.of_texts(captions)
        drawn = draw(task.generator, told, empty=task.nothing(told))
    note = "Left the picture of the data, right what the prior draws when it is told the caption."
    return _sheet("Drawn from captions", note, [pictures, drawn], captions, directory)


@torch.no_grad()
def before_and_after(task: TuneTask, data: TrainingData, *, batch_size: int = BATCH_SIZE) -> TablePanel:
    """The prior's loss told the embedding by the tower before and after, of the own picture and of another one.

    Args:
        task: trained.
        data: its data.
        batch_size: pictures that are denoised at once; a training's micro-batch fits the device.
    """
    sums, count = torch.zeros(4), 0
    size = min(batch_size, BATCH_SIZE)
    with evaluating(task):
        for batch in excerpt(data, task, num_batches=NUM_BATCHES * BATCH_SIZE // size, batch_size=size):
            old, new = (task.told(batch, old=is_old) for is_old in (True, False))
            told = [old, new, old.of_another(), new.of_another()]
            sums += torch.stack([task.errors(batch, each).sum().cpu() for each in told])
            count += len(old)
    own_old, own_new, other_old, other_new = (round(value, 4) for value in (sums / count).tolist())
    return TablePanel(
        title="What the generator learns from the embedding",
        note=f"Denoising loss on {count} pictures with the same noise. The first row is what was trained; the gap to "
        "the second is how much a picture's own embedding says of it.",
        order=20,
        columns=["told", "before", "after"],
        rows=[["the picture's own embedding", own_old, own_new], ["another picture's", other_old, other_new]],
    )


@torch.no_grad()
def drawn_from_images(task: TuneTask, data: TrainingData, directory: Path) -> ImagesPanel:
    """Writes pictures into `directory`: the data's, and the generator's from its embedding before and after."""
    (batch,) = excerpt(data, task, num_batches=1, batch_size=NUM_DRAWN)
    with evaluating(task):
        told = [task.told(batch, old=is_old) for is_old in (True, False)]
        drawn = [draw(task.generator, each, image_size=task.image_size) for each in told]
    note = "The picture, then what the generator draws of its embedding before and after tuning, from the same noise."
    pictures = _pictures(task.generator, batch)
    return _sheet("Drawn from embeddings", note, [pictures, *drawn], batch["keys"], directory)


def _pictures(generator: Generator, batch: Batch) -> Tensor:
    """A batch's pictures, or what the VAE makes of their kept latents."""
    if "pictures" in batch:
        pictures: Tensor = batch["pictures"]
        return pictures
    weight = next(generator.denoiser.parameters())
    return generator.space.decode(batch["latents"].to(weight))


def _sheet(title: str, note: str, columns: list[Tensor], captions: list[str], directory: Path) -> ImagesPanel:
    """Saves one PNG a row, its columns (B, 3, S, S) uint8 side by side, and returns the panel."""
    folder = directory / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    slug = title.lower().replace(" ", "-")
    pictures = []
    for index, caption in enumerate(captions):
        file = f"pictures/{slug}-{index}.png"
        Image.fromarray(_side_by_side([column[index] for column in columns])).save(directory / file)
        pictures.append(Picture(file=file, caption=caption))
    width = 100 * len(columns)
    return ImagesPanel(title=title, note=note, order=30, pictures=pictures, width=width)


def _side_by_side(images: list[Tensor]) -> NDArray[np.uint8]:
    """(3, S, S) images in a row, enlarged by whole pixels, with white between them."""
    arrays = [image.cpu().permute(1, 2, 0).numpy() for image in images]
    side = arrays[0].shape[0]
    factor = -(-SHOWN_SIDE // side)
    large = [np.kron(array, np.ones((factor, factor, 1), np.uint8)) for array in arrays]
    gap = np.full((side * factor, GAP, 3), 255, np.uint8)
    parts = [part for array in large for part in (array, gap)]
    return np.concatenate(parts[:-1], axis=1)
