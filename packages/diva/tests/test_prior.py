"""The prior's training: what stays frozen, what it must learn, and an exact resume after a crash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import diffusers
import pytest
import torch
from torch import Tensor

from diva_toy import batch_of, call, context, cut, make_clip, make_prior_inputs, prior_config, prior_task, same, weights
from vfm.data import Batch, TrainingData, eval_batches, open_dataset
from vfm.models import load_clip
from vfm.plugin import Artifact, ClipCheckpoint, GeneratorCheckpoint, Pool
from vfm.train import fit
from vfm_diva.generator.condition_map import ConditionMap
from vfm_diva.generator.generator import load_generator
from vfm_diva.generator.inputs import PriorInputs
from vfm_diva.prior.panels import condition_losses
from vfm_diva.prior.prior_task import PriorTask, measure_data
from vfm_kernels import DiffusionKind


def gradients(task: PriorTask, micro_batches: list[Batch[PriorInputs]]) -> dict[str, Tensor]:
    task.zero_grad()
    metrics = task.accumulate(call(task), micro_batches, torch.autograd.backward, torch.manual_seed)
    named = {name: parameter.grad.clone() for name, parameter in task.named_parameters()}
    return named | {"loss": metrics["loss"]}


@pytest.mark.parametrize("kind", get_args(DiffusionKind))
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    kind: DiffusionKind, clip: ClipCheckpoint, pool: Pool
) -> None:
    task = prior_task(clip, prediction=kind)
    batch = batch_of(pool, make_prior_inputs(task))
    whole, parts = gradients(task, [batch]), gradients(task, list(cut(batch, 4)))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


class OneBatch:
    """The same samples in every step, so that seconds suffice to learn them."""

    def __init__(self, batch: Batch[PriorInputs], stop: int | None = None) -> None:
        self.batch, self.stop = batch, stop

    def steps(self, start_step: int, num_steps: int, **sizes: int) -> Iterator[list[Batch[PriorInputs]]]:
        for step in range(start_step, num_steps):
            if step == self.stop:
                raise KeyboardInterrupt
            draws = torch.Generator().manual_seed(step)
            noise = torch.randn(self.batch.inputs.noise.shape, generator=draws)
            times = 0.4 + 0.6 * torch.rand(self.batch.inputs.times.shape, generator=draws)
            yield [replace(self.batch, inputs=replace(self.batch.inputs, noise=noise, times=times))]


def flat_colours(task: PriorTask, pool: Pool) -> Batch[PriorInputs]:
    """Return a batch of images of one colour each, which their embeddings describe completely."""
    batch = batch_of(pool, make_prior_inputs(task), 32)
    colours = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 3).repeat(4, 1)[..., None, None]
    inputs = replace(
        batch.inputs,
        images=colours.expand(-1, -1, 16, 16),
        target_images=colours.expand(-1, -1, 8, 8),
        is_text=torch.zeros(32, dtype=torch.bool),
        is_empty=torch.arange(32) % 8 == 0,
    )
    return replace(batch, inputs=inputs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(DiffusionKind))
def test_the_loss_of_a_trained_prior_depends_on_the_condition(
    kind: DiffusionKind, clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    task = prior_task(clip, prediction=kind)
    task.condition_noise = 0.0
    frozen, batch = weights(task.clip.module), flat_colours(task, pool)
    before, *_ = condition_losses(task, [batch], is_text=False)
    config = prior_config(steps=80, global_batch_size=32, lr=5e-3, prediction=kind, ema_decay=None)
    fit(task, OneBatch(batch), config, context(config, tmp_path))
    own, other, empty = condition_losses(task, [batch], is_text=False)
    assert own < 0.7 * before
    assert own < 0.95 * other
    assert own < 0.95 * empty
    assert same(frozen, weights(task.clip.module))


def test_an_interrupted_training_ends_as_an_uninterrupted_one(clip: ClipCheckpoint, pool: Pool, tmp_path: Path) -> None:
    config = prior_config(steps=6, checkpoint={"every_steps": 2}, ema_decay=0.5)

    def train(folder: Path, stop: int | None = None) -> dict[str, Tensor]:
        task = prior_task(clip)
        task.condition_map.gap.fill_(0.25)
        batch = batch_of(pool, make_prior_inputs(task))
        fit(task, OneBatch(batch, stop), config, context(config, folder))
        return weights(task)

    uninterrupted = train(tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=5)
    assert same(uninterrupted, train(tmp_path / "cut"))
    assert uninterrupted["condition_map.gap"].unique().tolist() == [0.25]


def test_measured_data_have_unit_rms_pixels_and_equal_mean_embeddings_of_images_and_texts(
    clip: ClipCheckpoint, pool: Pool
) -> None:
    task = prior_task(clip)
    source, make = open_dataset(pool), make_prior_inputs(task)
    measure_data(task, TrainingData(source, make, global_batch_size=16))
    (batch,) = eval_batches(source, make, 96)
    inputs = batch.inputs
    with torch.no_grad():
        assert task.space(inputs.target_images).square().mean() == pytest.approx(1, abs=1e-4)
        images = task.condition_map.toward_text(task.image_embeds(inputs.images))
        torch.testing.assert_close(images.mean(0), task.text_embeds(inputs.tokens).mean(0), atol=1e-5, rtol=0)


def test_each_sample_has_the_condition_that_was_drawn_for_it(clip: ClipCheckpoint, pool: Pool) -> None:
    task = prior_task(clip)
    inputs = batch_of(pool, make_prior_inputs(task)).inputs
    embeds, is_text = task.embeds(inputs), inputs.is_text
    assert 0 < is_text.sum() < len(is_text)
    texts = task.clip.module.encode_text(inputs.tokens, normalize=True)
    images = task.clip.module.encode_image(task.clip.pixels(inputs.images), normalize=True)
    expected = torch.where(is_text[:, None], texts, task.condition_map.toward_text(images))
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=1e-4)


def test_a_dropped_condition_is_the_same_for_every_sample() -> None:
    condition_map = ConditionMap(8, 2, 4)
    embeds = torch.randn(3, 8)
    is_empty = torch.tensor([True, False, True])
    tokens = condition_map(embeds, noise=torch.randn(3, 8), is_empty=is_empty).tokens
    assert torch.equal(tokens[[0, 2]], condition_map.empty(2).tokens)
    assert not torch.equal(tokens[1], tokens[0])


def test_a_saved_prior_is_restored_exactly_and_diffusers_reads_it(clip: ClipCheckpoint, tmp_path: Path) -> None:
    for kind, scheduler in (("v", "DDIMScheduler"), ("flow", "FlowMatchEulerDiscreteScheduler")):
        task = prior_task(clip, prediction=kind)
        task.condition_map.gap.normal_()
        task.generator.space.scale = 2.5  # type: ignore[assignment]
        made = Artifact.load(task.export(tmp_path / kind).path)
        assert isinstance(made, GeneratorCheckpoint)
        assert (made.sample_size, made.condition_width, made.prediction) == (8, 16, kind)
        again = load_generator(made)
        assert same(weights(task.denoiser), weights(again.denoiser))
        assert same(weights(task.condition_map), weights(again.condition_map))
        assert again.space.scale == 2.5
        assert torch.equal(task.denoiser.alphas_cumprod, again.denoiser.alphas_cumprod)
        assert type(again.scheduler).__name__ == scheduler
        theirs = diffusers.UNet2DConditionModel.from_pretrained(made.path / "unet", low_cpu_mem_usage=False)
        assert same(weights(task.denoiser.network), weights(theirs))


def test_another_clip_model_of_the_same_width_is_rejected(clip: ClipCheckpoint, tmp_path: Path) -> None:
    task = prior_task(clip)
    task.condition_map.check_space(load_clip(clip))
    with pytest.raises(ValueError, match="trained on another CLIP model than custom: expected cosine 1"):
        task.condition_map.check_space(load_clip(make_clip(tmp_path / "other", seed=1)))
