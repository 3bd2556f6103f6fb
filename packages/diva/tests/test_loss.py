"""The contrastive loss on predictions (DCR): equal to a plain twin, and trained by it the tower learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from diva_families import add_text_encoder, family_clip, family_generator
from diva_toy import batch_of, make_image_inputs, run, same, tune_config, weights
from test_tune import make_task, train
from vfm.data import Batch, ImageTransform, to_tensor
from vfm.models import load_clip
from vfm.plugin import (
    ClipCheckpoint,
    GeneratorCheckpoint,
    Pool,
)
from vfm_diva import ContrastiveLoss
from vfm_diva.generator.inputs import MakeTuneInputs, TuneInputs
from vfm_diva.tune.loss import contrast
from vfm_diva.tune.tune_task import TuneTask

CONTRASTIVE = {"type": "contrastive", "temperature": 0.1}
LINEAR = {"type": "linear"}


def as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a.flatten() @ b.flatten()) / (a.norm() * b.norm()))


def plain_contrast(predicted: Tensor, of_view: Tensor, target: Tensor, temperature: float) -> list[float]:
    """Compute the loss of each image, in double precision, one cosine at a time."""
    losses = []
    for i in range(len(of_view)):
        anchor = predicted[i, i]
        positives = [math.exp(cosine(anchor, each) / temperature) for each in (of_view[i], target[i])]
        negatives = sum(math.exp(cosine(anchor, predicted[i, j]) / temperature) for j in range(len(of_view)) if j != i)
        total = sum(positives) + negatives
        losses.append(-0.5 * sum(math.log(each / total) for each in positives))
    return losses


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_contrast_equals_its_formula(temperature: float) -> None:
    draws = torch.Generator().manual_seed(0)
    predicted, of_view, target = (torch.randn(*shape, 3, 4, 4, generator=draws) for shape in ((5, 5), (5,), (5,)))
    found = contrast(predicted, of_view, target, temperature)
    expected = plain_contrast(predicted.double(), of_view.double(), target.double(), temperature)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def viewed_batch(task: TuneTask, pool: Pool, size: int = 4) -> Batch[TuneInputs]:
    shape = task.generator.noise_shape_at(task.image_size)
    images = make_image_inputs(task.clip, size=task.image_size, shape=shape, scale=(0.5, 1.0))
    return batch_of(
        pool, MakeTuneInputs(images, view=ImageTransform(task.clip.preprocess.image_size, scale=(0.5, 1.0))), size
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_step_contrasts_every_noisy_sample_with_every_condition(
    kind: str, clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    generator = family_generator("sd_v" if kind == "v_prediction" else "sd", tmp_path)
    task = make_task(clip, generator, loss=CONTRASTIVE, adapter=LINEAR)
    inputs = viewed_batch(task, pool).inputs
    assert not torch.equal(inputs.images, inputs.views)
    loss, metrics = task(inputs)
    with torch.no_grad():
        own = task.conditioning(inputs)
        other = task.conditioning(replace(inputs, images=inputs.views))
        x0, noise = task.space.module(inputs.target_images), inputs.noise[:, 0]
        steps = (inputs.times[:, 0] * 1000).long()
        signal = task.generator.denoiser.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * x0 + (1 - signal).sqrt() * noise
        network = task.generator.denoiser.network
        predicted = torch.stack(
            [
                torch.stack(
                    [
                        network(noisy[i : i + 1], steps[i], encoder_hidden_states=own.tokens[j : j + 1]).sample[0]
                        for j in range(4)
                    ]
                )
                for i in range(4)
            ]
        )
        of_view = network(noisy, steps, encoder_hidden_states=other.tokens).sample
        target = noise if kind == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * x0
    expected = plain_contrast(predicted.double(), of_view.double(), target.double(), 0.1)
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-4)
    error = torch.stack([(predicted[i, i] - target[i]).square().mean() for i in range(4)]).mean()
    assert metrics["denoising_loss"].item() == pytest.approx(error.item(), rel=1e-4)


def test_its_training_lowers_it_and_changes_only_the_tower(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    task = make_task(clip, prior, loss=CONTRASTIVE)
    batch = viewed_batch(task, pool, size=8)
    held = (task.generator.denoiser, task.generator.condition_map, task.old_visual.module)
    frozen, before = [weights(part) for part in held], task(batch.inputs)[0].item()
    train(task, batch, tmp_path, steps=30, global_batch_size=8, lr=1e-3)
    assert task(batch.inputs)[0].item() < before
    assert all(same(old, weights(part)) for old, part in zip(frozen, held, strict=True))


@pytest.mark.slow
def test_the_preset_of_dcr_runs(pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    clip, sd = family_clip("openai", tmp_path / "clip"), family_generator("sd", tmp_path / "sd")
    add_text_encoder(sd.path, "StableDiffusionPipeline")
    config = tune_config(preset="dcr", steps=2, precision="fp32", lr=1e-3, adapter={"first_steps": 2})
    assert (config.loss, config.prompt.combine, config.micro_batch_size) == (ContrastiveLoss(), "broadcast", 16)
    tuned = run(config, tmp_path / "tuned", clip=clip, prior=sd, pool=pool)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"visual"}


def test_settings_that_leave_nothing_to_compare_are_refused() -> None:
    for changes in ({"num_timesteps": 2}, {"num_timesteps": 1, "micro_batch_size": 1}):
        with pytest.raises(ValueError, match=r"loss: contrastive needs num_timesteps: 1 and at least 2 images"):
            tune_config(loss=CONTRASTIVE, **changes)


def test_the_second_crop_is_a_crop_of_the_first_by_the_losss_own_settings(clip: ClipCheckpoint, pool: Pool) -> None:
    images = make_image_inputs(load_clip(clip), scale=None)
    whole, half = (
        MakeTuneInputs(images, view=ImageTransform(16, scale=(share, share), ratio=(1.0, 1.0))) for share in (1.0, 0.25)
    )
    first = batch_of(pool, whole, 8).inputs
    assert torch.equal(first.views, first.images)  # without a crop of the first one, it is the first one
    second = batch_of(pool, half, 8).inputs
    assert torch.equal(second.images, first.images)
    for image, view in zip(second.images, second.views, strict=True):
        crops = [image[:, y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
        resized = [ImageTransform(16).apply(as_image(crop), 0) for crop in crops]
        assert any(torch.equal(to_tensor(each), view) for each in resized)
