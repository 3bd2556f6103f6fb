"""Diffusion feedback: only the vision tower changes, and the gradient does not depend on the micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diva_toy import (
    batch_of,
    call,
    context,
    cut,
    make_clip,
    make_image_inputs,
    make_stable_diffusion,
    same,
    tune_config,
    weights,
)
from vfm.data import Batch
from vfm.models import load_clip
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint, Pool
from vfm.train import fit
from vfm_diva import CosineAnchor, Feedback, L2SpAnchor, RelationalAnchor
from vfm_diva.generator.generator import load_generator
from vfm_diva.generator.inputs import MakeTuneInputs, TuneInputs
from vfm_diva.tune.tune_task import TuneTask

ANCHORS: dict[str, Any] = {
    "none": {"type": "none"},
    "cosine": {"type": "cosine"},
    "relational": {"type": "relational", "prompts": ["red", "blue"]},
    "l2_sp": {"type": "l2_sp"},
}
LINEAR = {"type": "linear"}


def make_task(clip: ClipCheckpoint, generator: GeneratorCheckpoint, anchor: str = "none", **parts: Any) -> TuneTask:
    return TuneTask(load_clip(clip), load_generator(generator), Feedback(anchor=ANCHORS[anchor], **parts))


def batch_for(task: TuneTask, pool: Pool, num_times: int = 2, size: int = 16) -> Batch[TuneInputs]:
    shape = task.generator.noise_shape_at(task.image_size)
    images = make_image_inputs(task.clip, size=task.image_size, shape=shape, num_times=num_times, scale=(0.8, 1.0))
    return batch_of(pool, MakeTuneInputs(images), size)


class Fixed:
    """The same batch in every step."""

    def __init__(self, batch: Batch[TuneInputs], stop: int | None = None) -> None:
        self.batch, self.stop = batch, stop

    def steps(
        self, start_step: int, num_steps: int, *, micro_batch_size: int, **sizes: int
    ) -> Iterator[list[Batch[TuneInputs]]]:
        for step in range(start_step, num_steps):
            if step == self.stop:
                raise KeyboardInterrupt
            yield list(cut(self.batch, micro_batch_size))


def train(task: TuneTask, batch: Batch[TuneInputs], folder: Path, *, stop: int | None = None, **changes: Any) -> None:
    config = tune_config(**changes)
    fit(task, Fixed(batch, stop), config, context(config, folder))


def gradients(task: TuneTask, micro_batches: list[Batch[TuneInputs]]) -> dict[str, Tensor]:
    task.zero_grad()
    metrics = task.accumulate(call(task), micro_batches, torch.autograd.backward, torch.manual_seed)
    named = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    return named | {"loss": metrics["loss"]}


@pytest.mark.parametrize("num_times", [1, 2, 4])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    num_times: int, anchor: str, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool
) -> None:
    task = make_task(clip, prior, anchor)
    with torch.no_grad():  # at the initial weights the anchors have no gradient
        for parameter in task.visual.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    batch = batch_for(task, pool, num_times)
    whole, parts = gradients(task, [batch]), gradients(task, list(cut(batch, 4)))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)
    assert max(value.abs().max() for value in whole.values()) > 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_the_vision_tower_changes(
    optimizer: str, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    task = make_task(clip, prior, "cosine")
    module, generator = task.clip.module, task.generator
    held = (generator.denoiser, generator.condition_map, task.old_visual.module)
    before, frozen = weights(module), [weights(part) for part in held]
    train(task, batch_for(task, pool), tmp_path, optimizer={"type": optimizer}, micro_batch_size=4)
    after = weights(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("visual.")}
    assert all(same(old, weights(part)) for old, part in zip(frozen, held, strict=True))
    assert not any(p.grad is not None for part in held for p in part.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_learning_rate_0_returns_the_source_model_bit_for_bit(
    optimizer: str, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    task = make_task(clip, prior, "relational")
    train(task, batch_for(task, pool), tmp_path, lr=0.0, optimizer={"type": optimizer, "weight_decay": 0.1})
    made = task.export(tmp_path / "made")
    assert same(weights(load_clip(clip).module), weights(load_clip(made).module))
    files = [folder.path / "open_clip_model.safetensors" for folder in (clip, made)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_feedback_lowers_its_loss(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    task = make_task(clip, prior)
    batch = batch_for(task, pool)
    before = task(batch.inputs)[0].item()
    train(task, batch, tmp_path, steps=20)
    assert task(batch.inputs)[0].item() < before


@pytest.mark.parametrize("update", [{"type": "all"}, {"type": "lora", "rank": 2}], ids=lambda part: part["type"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    update: dict[str, Any], clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    def trained(folder: Path, stop: int | None = None) -> dict[str, Tensor]:
        task = make_task(clip, stable_diffusion, "cosine", adapter=LINEAR, trained=update)
        train(task, batch_for(task, pool), folder, stop=stop, steps=5, checkpoint={"every_steps": 2})
        return weights(task)

    uninterrupted = trained(tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", stop=3)
    assert same(uninterrupted, trained(tmp_path / "cut"))
    assert {"conditioner.adapter.tokens.weight", "visual.proj"} <= uninterrupted.keys()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("condition", "count"), [({"type": "embedding"}, 1), ({"type": "patches"}, 5)])
def test_stable_diffusion_tunes_through_an_adapter(
    prediction: str, condition: dict[str, Any], count: int, clip: ClipCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    generator = make_stable_diffusion(tmp_path, prediction=prediction)
    task = make_task(clip, generator, adapter=LINEAR, condition=condition)
    assert task.image_size == 16  # 8 x 8 latents of a VAE that halves once
    batch = batch_for(task, pool)
    assert task.conditioning(batch.inputs).tokens.shape == (16, count, 24)
    held = (task.generator.denoiser, task.generator.space)
    before, frozen = weights(task), [weights(part) for part in held]
    train(task, batch, tmp_path, steps=10)
    after = weights(task)
    assert all(
        not torch.equal(before[f"conditioner.adapter.tokens.{name}"], after[f"conditioner.adapter.tokens.{name}"])
        for name in ("weight", "bias")
    )
    assert not torch.equal(before["visual.conv1.weight"], after["visual.conv1.weight"])
    assert all(same(old, weights(part)) for old, part in zip(frozen, held, strict=True))


def test_the_image_is_encoded_once_for_all_its_times(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool
) -> None:
    task = make_task(clip, prior)
    passes: dict[str, list[int]] = {"visual": [], "unet": []}
    task.visual.register_forward_hook(lambda module, inputs, output: passes["visual"].append(len(inputs[0])))
    task.generator.denoiser.network.register_forward_hook(
        lambda module, inputs, output: passes["unet"].append(len(inputs[0]))
    )
    task(batch_for(task, pool, num_times=4).inputs)
    assert passes == {"visual": [16], "unet": [64]}


def test_without_attention_to_the_condition_there_is_no_gradient(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool
) -> None:
    task = make_task(clip, prior)
    batch = batch_for(task, pool)
    assert gradients(task, [batch])["visual.proj"].abs().max() > 0
    for name, module in task.generator.denoiser.network.named_modules():
        if name.endswith("attn2"):
            torch.nn.init.zeros_(module.to_out[0].weight)
    assert gradients(task, [batch])["visual.proj"].abs().max() == 0


def test_anchors_are_zero_at_the_start_and_measure_what_they_keep(clip: ClipCheckpoint) -> None:
    model = load_clip(clip)
    red, blue = model.encode_texts(["red", "blue"])
    aside = red - 2 * (red @ blue) * blue  # mirrored: only its similarity to blue differs
    cosine, to_red = CosineAnchor(weight=0.5), RelationalAnchor(prompts=["red"], weight=2.0)
    of_cosine, of_red = cosine.build(model), to_red.build(model)
    assert of_cosine(red, red).abs() < 1e-6
    assert of_red(blue, blue) == 0
    assert of_cosine(aside, red) == pytest.approx(0.5 * (1 - float(aside @ red)))
    assert of_red(-red, red) == pytest.approx(2 * 2**2)
    beside = blue - (blue @ red) * red
    assert of_red(red + beside, red) == pytest.approx(0, abs=1e-9)


def test_l2_sp_is_half_the_squared_distance_of_the_trained_weights(clip: ClipCheckpoint) -> None:
    model, other = (load_clip(clip) for _ in range(2))
    visual, old = model.module.visual, other.module.visual
    visual.conv1.weight.requires_grad_(False)
    with torch.no_grad():
        visual.conv1.weight.add_(5.0)
        visual.proj.add_(0.1)
    loss = L2SpAnchor(weight=0.5).build(model)(visual, old)
    assert loss.item() == pytest.approx(0.5 * 0.5 * 0.01 * visual.proj.numel(), rel=1e-4)


def test_parts_that_do_not_fit_are_rejected_in_one_line(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, stable_diffusion: GeneratorCheckpoint, tmp_path: Path
) -> None:
    def refusal(clip: ClipCheckpoint, generator: GeneratorCheckpoint, **changes: Any) -> str:
        with pytest.raises(ValueError) as caught:
            make_task(clip, generator, **changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "width 24, got tokens of custom with 32: set adapter.type: linear" in refusal(clip, stable_diffusion)
    assert "image_size must be a multiple of 4 for this generator, got 18" in refusal(
        clip, stable_diffusion, image_size=18, adapter=LINEAR
    )
    both = {"prompt": {"combine": "broadcast"}, "condition": {"type": "patches"}, "adapter": LINEAR}
    assert "prompt.combine: broadcast needs one token, of condition embedding or cls" in refusal(
        clip, stable_diffusion, **both
    )
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    patchless = make_clip(tmp_path / "resnet", **resnet)
    message = refusal(patchless, stable_diffusion, adapter=LINEAR, condition={"type": "patches"})
    assert "no patch tokens" in message
    assert "expected cosine 1 of one text" in refusal(make_clip(tmp_path / "other", seed=1), prior)
