"""Draw the effect of the condition on the loss, and generated images."""

# B batch, S side of the image

from __future__ import annotations

from operator import itemgetter
from pathlib import Path

import torch

from vfm.data import TrainingData
from vfm.models import eval_mode
from vfm.plugin import ImagesPanel, TablePanel, TextPanel
from vfm_diva.generator.generator import sample_images
from vfm_diva.generator.inputs import TuneInputs, sample_batches
from vfm_diva.prior.panels import BATCH_SIZE, NUM_BATCHES, NUM_SAMPLES, _target_images, _write_rows
from vfm_diva.tune.stages import Control
from vfm_diva.tune.tune_task import TuneTask


@torch.no_grad()
def before_after_panel(task: TuneTask, data: TrainingData[TuneInputs], *, batch_size: int = BATCH_SIZE) -> TablePanel:
    """Tabulate the denoising loss before and after tuning, with each image's embedding and with another image's.

    Args:
        task: Task after training.
        data: Data of the training run.
        batch_size: Images denoised at once. The micro-batch of training fits the device.
    """
    sums = torch.zeros(4)
    count = 0
    size = min(batch_size, BATCH_SIZE)
    device = next(task.parameters()).device
    with eval_mode(task):
        for batch in sample_batches(data, device, num_batches=NUM_BATCHES * BATCH_SIZE // size, batch_size=size):
            old = task.conditioning(batch.inputs, old=True)
            new = task.conditioning(batch.inputs, old=False)
            rows = len(old) // len(batch)  # of an image: several if patches are drawn for each time
            cases = [old, new, old.mismatched(rows), new.mismatched(rows)]
            sums += torch.stack([task.errors(batch.inputs, condition).sum().cpu() for condition in cases])
            count += len(batch)
    own_old, own_new, other_old, other_new = (round(value, 4) for value in (sums / count).tolist())
    return TablePanel(
        title="Denoising loss before and after tuning",
        note=f"On {count} images with the same noise. The first row was trained; its distance to the second shows how "
        "much an image's own embedding says about it.",
        order=20,
        columns=["condition", "before", "after"],
        rows=[["the image's own embedding", own_old, own_new], ["another image's", other_old, other_new]],
    )


@torch.no_grad()
def image_samples_panel(task: TuneTask, data: TrainingData[TuneInputs], directory: Path) -> ImagesPanel:
    """Show images of the dataset next to images generated from their embeddings before and after the tuning.

    Args:
        task: Task of the tuned tower.
        data: Batches to take images from.
        directory: Folder to write the images into.
    """
    device = next(task.parameters()).device
    (batch,) = sample_batches(data, device, num_batches=1, batch_size=NUM_SAMPLES)
    with eval_mode(task):
        generated = []
        for is_old in (True, False):
            condition = task.conditioning(batch.inputs, old=is_old)
            # One conditioning of an image: it has several if patches are drawn for each time.
            first = itemgetter(slice(None, None, len(condition) // len(batch)))
            generated.append(sample_images(task.generator, condition.map(first), image_size=task.image_size))
    images = _target_images(task.generator, batch.inputs.target_images, batch.inputs.target_latents)
    return ImagesPanel(
        title="Images generated from embeddings",
        note="The image, then those that the generator makes from its embedding before and after tuning, from the same"
        " noise.",
        order=30,
        pictures=_write_rows("drawn-from-embeddings", [images, *generated], batch.keys, directory),
        width=300,
    )


CONTROLS: dict[Control, str] = {
    "shuffled": "each image was denoised with the tokens of another image of its batch",
    "random_prior": "the denoiser had random weights",
    "anchor_only": "the denoising loss was omitted, so that only the anchor trained the tower, from its minimum: the "
    "changes are rounding errors, which an adaptive optimizer enlarges",
}


def control_panel(control: Control) -> TextPanel:
    """Describe an ablation control for the report."""
    text = (
        f"This is an ablation control ({control}), not the method: {CONTROLS[control]}. It shows whether the method's "
    )
    text += (
        "gradient carries information. The size of a gain is measured against the model before tuning, since a control"
    )
    text += " is not neutral: a shuffled condition rewards the tower for encoding less."
    return TextPanel(title="Ablation control", text=text, order=5)
