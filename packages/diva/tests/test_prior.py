"""The prior's training: what it may not move, what it must learn, and that it goes on after a crash as if none was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import diffusers
import pytest
import torch
from torch import Tensor

from diva_toy import batch_of, context, cut, make_clip, make_samples, prior_plan, prior_task, same, weights
from vfm.artifacts import Artifact, ClipCheckpoint, GeneratorCheckpoint, Pool
from vfm.data.eval_loader import eval_batches
from vfm.data.loader import Batch, TrainingData
from vfm.data.source import open_dataset
from vfm.models.clip import load_clip
from vfm.train import fit
from vfm_diva.condition_map import ConditionMap
from vfm_diva.generator import load_generator
from vfm_diva.pictures import condition_losses
from vfm_diva.prior_task import PriorTask, measure
from vfm_kernels.diffusion import DiffusionKind


def gradients(task: PriorTask, micro_batches: list[Batch]) -> dict[str, Tensor]:
    task.zero_grad()
    metrics = task.accumulate(task, micro_batches, torch.autograd.backward, torch.manual_seed)
    named = {name: parameter.grad.clone() for name, parameter in task.named_parameters()}
    return named | {"loss": metrics["loss"]}


@pytest.mark.parametrize("kind", get_args(DiffusionKind))
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    kind: DiffusionKind, clip: ClipCheckpoint, pool: Pool
) -> None:
    task = prior_task(clip, prediction=kind)
    batch = batch_of(pool, make_samples(task))
    whole, parts = gradients(task, [batch]), gradients(task, list(cut(batch, 4)))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


class OnePicture:
    """The same samples in every step, so that seconds suffice to learn them."""

    def __init__(self, batch: Batch, stop: int | None = None) -> None:
        self.batch, self.stop = batch, stop

    def steps(self, start_step: int, num_steps: int, **how: int) -> Iterator[list[Batch]]:
        for step in range(start_step, num_steps):
            if step == self.stop:
                raise KeyboardInterrupt
            draws = torch.Generator().manual_seed(step)
            noise = torch.randn(self.batch["noise"].shape, generator=draws)
            times = 0.4 + 0.6 * torch.rand(self.batch["times"].shape, generator=draws)
            yield [{**self.batch, "noise": noise, "times": times}]


def flat_colours(task: PriorTask, pool: Pool) -> Batch:
    """A batch whose pictures are one colour each: what is told of a picture is all there is to know of it."""
    batch = batch_of(pool, make_samples(task), 32)
    colours = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 3).repeat(4, 1)[..., None, None]
    told = {"is_text": torch.zeros(32, dtype=torch.bool), "is_empty": torch.arange(32) % 8 == 0}
    return batch | told | {"images": colours.expand(-1, -1, 16, 16), "pictures": colours.expand(-1, -1, 8, 8)}


@pytest.mark.parametrize("kind", get_args(DiffusionKind))
def test_a_trained_prior_feels_whose_condition_it_is_told(
    kind: DiffusionKind, clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    task = prior_task(clip, prediction=kind)
    task.condition_noise = 0.0
    frozen, batch = weights(task.clip.module), flat_colours(task, pool)
    before, *_ = condition_losses(task, iter([batch]), is_text=False)
    plan = prior_plan(steps=80, global_batch_size=32, lr=5e-3, prediction=kind, ema_decay=None)
    fit(task, OnePicture(batch), plan, context(plan, tmp_path), plan.runtime)
    own, other, empty = condition_losses(task, iter([batch]), is_text=False)
    assert own < 0.7 * before
    assert own < 0.95 * other
    assert own < 0.95 * empty
    assert same(frozen, weights(task.clip.module))


def test_a_prior_cut_in_training_ends_as_the_unbroken_one(clip: ClipCheckpoint, pool: Pool, tmp_path: Path) -> None:
    plan = prior_plan(steps=6, checkpoint={"every_steps": 2}, ema_decay=0.5)

    def go(folder: Path, stop: int | None = None) -> dict[str, Tensor]:
        task = prior_task(clip)
        task.condition_map.gap.fill_(0.25)
        batch = batch_of(pool, make_samples(task))
        fit(task, OnePicture(batch, stop), plan, context(plan, folder), plan.runtime)
        return weights(task)

    unbroken = go(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stop=5)
    assert same(unbroken, go(tmp_path / "cut"))
    assert unbroken["condition_map.gap"].unique().tolist() == [0.25]


def test_what_is_measured_makes_pixels_spread_1_and_brings_mean_images_onto_mean_texts(
    clip: ClipCheckpoint, pool: Pool
) -> None:
    task = prior_task(clip)
    source, make = open_dataset(pool), make_samples(task)
    measure(task, TrainingData(source, make, global_batch_size=16))
    (batch,) = eval_batches(source, make, 96)
    with torch.no_grad():
        assert task.space(batch["pictures"]).square().mean() == pytest.approx(1, abs=1e-4)
        images = task.condition_map.toward_text(task.image_embeds(batch["images"]))
        torch.testing.assert_close(images.mean(0), task.text_embeds(batch["tokens"]).mean(0), atol=1e-5, rtol=0)


def test_each_sample_is_told_what_was_drawn_for_it(clip: ClipCheckpoint, pool: Pool) -> None:
    task = prior_task(clip)
    batch = batch_of(pool, make_samples(task))
    embeds, is_text = task.embeds(batch), batch["is_text"]
    assert 0 < is_text.sum() < len(is_text)
    texts = task.clip.module.encode_text(batch["tokens"], normalize=True)
    images = task.clip.module.encode_image(task.clip.pixels(batch["images"]), normalize=True)
    expected = torch.where(is_text[:, None], texts, task.condition_map.toward_text(images))
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=1e-4)


def test_a_withheld_condition_is_the_same_for_every_sample() -> None:
    condition_map = ConditionMap(8, 2, 4)
    embeds = torch.randn(3, 8)
    is_empty = torch.tensor([True, False, True])
    tokens = condition_map(embeds, noise=torch.randn(3, 8), is_empty=is_empty).tokens
    assert torch.equal(tokens[[0, 2]], condition_map.empty(2).tokens)
    assert not torch.equal(tokens[1], tokens[0])


def test_a_saved_prior_is_what_diffusers_reads_and_what_it_was(clip: ClipCheckpoint, tmp_path: Path) -> None:
    for kind, scheduler in (("v", "DDIMScheduler"), ("flow", "FlowMatchEulerDiscreteScheduler")):
        task = prior_task(clip, prediction=kind)
        task.condition_map.gap.normal_()
        task.generator.space.scale = 2.5
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


def test_another_clip_model_is_refused_though_it_has_the_same_width(clip: ClipCheckpoint, tmp_path: Path) -> None:
    task = prior_task(clip)
    task.condition_map.check_space(load_clip(clip))
    with pytest.raises(ValueError, match="trained over another CLIP model than custom: the cosine"):
        task.condition_map.check_space(load_clip(make_clip(tmp_path / "other", seed=1)))
