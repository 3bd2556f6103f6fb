"""Draw the effect of the condition on a prior's loss, and samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.data import Batch, TrainingData, stacked
from vfm.models import eval_mode
from vfm.plugin import ImagesPanel, PanelImage, TablePanel
from vfm_diva.generator.generator import Generator, sample_images
from vfm_diva.generator.inputs import PriorInputs, sample_batches, usable_samples
from vfm_diva.prior.prior_task import PriorTask

NUM_BATCHES = 2
BATCH_SIZE = 128
NUM_SAMPLES = 8
SHOWN_SIDE = 96  # minimum side of a shown image, in pixels
GAP = 4  # pixels between images side by side


@torch.no_grad()
def condition_panel(task: PriorTask, data: TrainingData[PriorInputs], *, with_texts: bool = True) -> TablePanel:
    """Compare the prior's loss under the right, a wrong and no condition.

    A prior whose loss does not depend on the condition has nothing to teach.

    Args:
        task: The trained prior.
        data: Batches to compute the losses on.
        with_texts: False for a prior that was trained on images alone.

    Returns:
        Table of the losses with the image's own condition, with another image's, and with none.
    """
    device = next(task.parameters()).device
    batches = list(sample_batches(data, device, num_batches=NUM_BATCHES, batch_size=BATCH_SIZE))
    count = sum(map(len, batches))
    kinds = {"text embedding": True, "image embedding": False} if task.condition_map else {"caption's states": True}
    rows: list[list[str | float | int | None]] = []
    for name, is_text in kinds.items():
        if is_text and not with_texts:
            continue
        with_own, with_other, with_none = condition_losses(task, batches, is_text=is_text)
        rise = round(100 * (with_other / with_own - 1), 1)
        rows.append([name, round(with_own, 4), round(with_other, 4), round(with_none, 4), rise])
    return TablePanel(
        title="Effect of the condition on the prior's loss",
        note=f"Denoising loss on {count} images with the same noise, with their own condition, another's, or none.",
        order=20,
        columns=["condition", "own", "another's", "none", "rise with another's, %"],
        rows=rows,
    )


@torch.no_grad()
def condition_losses(
    task: PriorTask, batches: Iterable[Batch[PriorInputs]], *, is_text: bool
) -> tuple[float, float, float]:
    """Compute the mean losses under the right, a wrong and no condition.

    Args:
        task: The trained prior.
        batches: Batches to compute the losses on.
        is_text: Whether the conditions are captions or images.

    Returns:
        The losses with each image's condition, with another image's of the batch, and with none.
    """
    sums = torch.zeros(3)
    count = 0
    with eval_mode(task):
        for batch in batches:
            inputs = replace(batch.inputs, is_text=torch.full_like(batch.inputs.is_text, is_text))
            matched = task.condition(inputs)
            conditions = (matched, matched.mismatched(), task.empty(matched))
            losses = [task.errors(inputs, condition).sum().cpu() for condition in conditions]
            sums += torch.stack(losses)
            count += len(matched)
    with_own, with_other, with_none = (sums / count).tolist()
    return with_own, with_other, with_none


@torch.no_grad()
def samples_panel(
    task: PriorTask, data: TrainingData[PriorInputs], language: str | None, directory: Path
) -> ImagesPanel:
    """Show images of the dataset next to images that the prior generates.

    They are generated from the image's first caption in a language, or from its embedding if `language` is None. An
    image without a caption in the language is not shown.

    Args:
        task: The trained prior.
        data: Batches to take images from.
        language: Language of the captions.
        directory: Folder to write the images into.
    """
    captions: list[str] = []
    samples: list[PriorInputs] = []
    for sample, sample_inputs in usable_samples(data):
        if language and not sample.texts.get(language):
            continue
        captions.append(sample.texts[language][0] if language else sample.key)
        samples.append(sample_inputs)
        if len(samples) == NUM_SAMPLES:
            break
    inputs = stacked(samples)
    images = _target_images(task.generator, inputs.target_images, inputs.target_latents)
    device = next(task.denoiser.parameters()).device
    with eval_mode(task):
        if language:
            conditioning = task.condition_on_texts(captions)
        else:
            conditioning = task.condition_on_images(inputs.images.to(device))
        generated = sample_images(task.generator, conditioning, empty=task.empty(conditioning))
    source = "caption" if language else "embedding"
    return ImagesPanel(
        title=f"Images generated from {source}s",
        note=f"Left: an image of the dataset. Right: an image that the prior generates from its {source}.",
        order=30,
        pictures=_write_rows(f"drawn-from-{source}s", [images, generated], captions, directory),
        width=200,
    )


def _target_images(generator: Generator, target_images: Tensor | None, target_latents: Tensor | None) -> Tensor:
    """Collect the generator's images, (B, 3, S, S), and decode them from cached latents if necessary."""
    if target_images is not None:
        return target_images
    assert target_latents is not None
    weight = next(generator.denoiser.parameters())
    return generator.space.decode(target_latents.to(weight))


def _write_rows(name: str, columns: list[Tensor], captions: list[str], directory: Path) -> list[PanelImage]:
    """Write a PNG for each caption, with the images of the columns, (B, 3, S, S) uint8, side by side."""
    folder = directory / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, caption in enumerate(captions):
        file = f"pictures/{name}-{index}.png"
        Image.fromarray(_side_by_side([column[index] for column in columns])).save(directory / file)
        rows.append(PanelImage(file=file, caption=caption))
    return rows


def _side_by_side(images: list[Tensor]) -> NDArray[np.uint8]:
    """Join (3, S, S) images in a row, enlarged by a whole factor, with white between them."""
    side = images[0].shape[-1]
    factor = -(-SHOWN_SIDE // side)  # rounded up
    pixel = np.ones((factor, factor, 1), np.uint8)  # an enlarged one
    gap = np.full((side * factor, GAP, 3), 255, np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for image in images:
        parts += [np.kron(image.cpu().permute(1, 2, 0).numpy(), pixel), gap]
    return np.concatenate(parts[:-1], axis=1)
