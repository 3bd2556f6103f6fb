"""The steps of `genhancer` and `dcr` equal the released ones, re-typed here over transformers' CLIP and peft.

The released codes train all linear layers of `CLIPModel` by peft. Ours trains open_clip's tower, so every loss and
gradient is computed twice by different code. Dropout is off, since its draws cannot be equal. DCR's code takes the
velocity as the target of a model that predicts noise, which is corrected in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diva_families import CONTEXT, family_clip, family_generator
from diva_toy import run, tune_config, weights
from vfm.models import find_format, load_clip
from vfm.plugin import AdamW, ClipCheckpoint, GeneratorCheckpoint, Lora, Pool
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import load_generator
from vfm_diva.generator.inputs import TuneInputs
from vfm_diva.generator.stages import CropSettings
from vfm_diva.tune.stages import DivaTune
from vfm_diva.tune.tune_task import TuneTask

transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")

SIDE, GENERATORS = 16, {"genhancer": "flux", "dcr": "sd"}
BLOCK = "vision_model.encoder.layers"
NAMES = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
NAMES |= {f"attn.in_proj.parts.{number}": f"self_attn.{name}_proj" for number, name in enumerate("qkv")}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipCheckpoint:
    return family_clip("openai_sized", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GeneratorCheckpoint]:
    return {name: family_generator(family, tmp_path_factory.mktemp(name)) for name, family in GENERATORS.items()}


def settings_of(preset: str) -> DivaTune:
    return DivaTune.model_validate({"name": "t", "clip": "c", "data": "d", "generator": "g", "preset": preset})


def make_task(preset: str, clip: ClipCheckpoint, generator: GeneratorCheckpoint) -> TuneTask:
    config = settings_of(preset).model_copy(update={"image_size": SIDE})
    states = torch.randn(1, 77, CONTEXT, generator=torch.Generator().manual_seed(3))
    task = TuneTask(load_clip(clip), load_generator(generator), config, prompt=Conditioning(states), seed=1)
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in task.visual.named_parameters():
            if "lora_B" in name:  # at 0 the other factors would have no gradient
                parameter.normal_(std=0.05, generator=draws)
    return task.eval()


def make_inputs(task: TuneTask, size: int = 3) -> TuneInputs:
    draws = torch.Generator().manual_seed(4)
    shape = task.generator.noise_shape_at(SIDE)
    return TuneInputs(
        images=torch.randint(256, (size, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8),
        target_images=torch.randint(256, (size, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8),
        views=torch.randint(256, (size, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8),
        latent_noise=torch.randn(size, *shape, generator=draws),
        noise=torch.randn(size, 1, *shape, generator=draws),
        times=torch.rand(size, 1, generator=draws),
    )


def released_clip(task: TuneTask, clip: ClipCheckpoint, folder: Path) -> tuple[Any, dict[str, str]]:
    """Load transformers' CLIP with peft's changes, equal to the task's, and the task's name of each trained weight."""
    model = load_clip(clip)
    find_format("hf", model, "clip").write(model, folder)
    theirs = transformers.CLIPModel.from_pretrained(folder)
    lora = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", lora_dropout=0.1, bias="lora_only")
    theirs = peft.get_peft_model(theirs, lora).eval()
    ours, names = dict(task.visual.named_parameters()), {}
    for name, parameter in theirs.named_parameters():
        short = name.removeprefix("base_model.model.")
        if not parameter.requires_grad or short.startswith("text_"):
            continue
        if short.startswith("visual_projection"):
            own = "parametrizations.proj.0." + short.split(".")[1]
        else:
            number, _, rest = short.removeprefix(f"{BLOCK}.").partition(".")
            layer = next(layer for layer, other in NAMES.items() if rest.startswith(other))
            own = f"transformer.resblocks.{number}.{layer}{rest.removeprefix(NAMES[layer])}"
        parameter.data.copy_(ours[own].data)
        names[name] = own
    return theirs, names


def embed(theirs: Any, task: TuneTask, images: Tensor) -> Tensor:
    embeds: Tensor = theirs.visual_projection(theirs.vision_model(task.clip.pixels(images)).pooler_output)
    return embeds


def sampled_latents(task: TuneTask, inputs: TuneInputs, scale: float) -> Tensor:
    assert inputs.target_images is not None
    assert inputs.latent_noise is not None
    with torch.no_grad():
        moments = task.generator.space.vae.encode(inputs.target_images / 255 * 2 - 1).latent_dist
    return scale * (moments.mean + torch.exp(0.5 * moments.logvar) * inputs.latent_noise)


def genhancer_loss(theirs: Any, task: TuneTask, inputs: TuneInputs) -> Tensor:
    """Compute the error of a straight path's velocity, conditioned on the class token by two MLPs."""
    adapter: Any = task.conditioner.adapter
    data, noise, t = sampled_latents(task, inputs, 0.3611), inputs.noise[:, 0], inputs.times[:, 0]
    token = embed(theirs, task, inputs.images)
    mixed = (1 - t.view(-1, 1, 1, 1)) * data + t.view(-1, 1, 1, 1) * noise
    height, width = mixed.shape[2:]
    squares = F.pixel_unshuffle(mixed, 2).flatten(2).transpose(1, 2)  # each token is c, row, column
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()
    predicted = task.generator.denoiser.network(
        squares,
        encoder_hidden_states=adapter.tokens(token[:, None]),
        pooled_projections=adapter.pooled(token),
        timestep=t,
        img_ids=places,
        txt_ids=torch.zeros(1, 3),
    ).sample
    target = F.pixel_unshuffle(noise - data, 2).flatten(2).transpose(1, 2)
    return F.mse_loss(predicted, target)


def dcr_loss(theirs: Any, task: TuneTask, inputs: TuneInputs) -> Tensor:
    """Compute the two cross-entropies of an image's own prediction against predictions with the others' tokens."""
    adapter: Any = task.conditioner.adapter
    prompt = task.conditioner.prompt
    assert prompt is not None
    assert inputs.views is not None
    latents, noise = sampled_latents(task, inputs, 0.18215), inputs.noise[:, 0]
    step = (inputs.times[:, 0] * 1000).long()
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)[step].view(-1, 1, 1, 1)  # the toy's betas
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    network: Any = task.generator.denoiser.network
    own, other = (
        prompt.tokens + adapter.tokens(embed(theirs, task, x))[:, None] for x in (inputs.images, inputs.views)
    )

    def unit(value: Tensor) -> Tensor:
        return F.normalize(value.flatten(1), dim=1)

    losses = []
    for i in range(len(noisy)):
        same = noisy[i : i + 1].repeat(len(noisy), 1, 1, 1)
        every = unit(network(same, step[i], encoder_hidden_states=own).sample)
        view = unit(network(noisy[i : i + 1], step[i], encoder_hidden_states=other[i : i + 1]).sample)[0]
        positives = [every[i] @ view / 0.1, every[i] @ unit(noise[i : i + 1])[0] / 0.1]
        negatives = [every[i] @ every[j] / 0.1 for j in range(len(noisy)) if j != i]
        total = torch.stack(positives + negatives).exp().sum()
        losses.append(-0.5 * sum((value.exp() / total).log() for value in positives))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("preset", "released_loss"), [("genhancer", genhancer_loss), ("dcr", dcr_loss)])
def test_the_step_and_its_gradient_are_the_released_ones(
    preset: str, released_loss: Any, clip: ClipCheckpoint, generators: dict[str, GeneratorCheckpoint], tmp_path: Path
) -> None:
    task = make_task(preset, clip, generators[preset])
    inputs = make_inputs(task)
    theirs, names = released_clip(task, clip, tmp_path)
    ours = {name: p for name, p in task.visual.named_parameters() if p.requires_grad}
    assert set(names.values()) == set(ours)
    loss, released = task(inputs)[0], released_loss(theirs, task, inputs)
    assert loss.item() == pytest.approx(released.item(), rel=1e-6)
    gradients = torch.autograd.grad(loss, list(ours.values()))
    theirs_by_name = dict(theirs.named_parameters())
    expected = torch.autograd.grad(released, [theirs_by_name[name] for name in names])
    by_name = dict(zip(names.values(), expected, strict=True))
    scale = max(float(value.abs().max()) for value in expected)
    assert scale > 1e-6
    for name, gradient in zip(ours, gradients, strict=True):
        torch.testing.assert_close(gradient, by_name[name], atol=1e-5 * scale, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("preset", "steps"), [("genhancer", 10_000), ("dcr", 4600)])
def test_the_settings_are_those_of_the_released_configurations(preset: str, steps: int) -> None:
    config = settings_of(preset)
    adapter: Any = config.adapter
    assert (adapter.type, adapter.first_steps, adapter.first_lr, adapter.joint) == ("mlp", 100_000, 1e-4, False)
    assert (config.num_steps, config.lr, config.global_batch_size, config.precision) == (steps, 1e-5, 256, "amp_bf16")
    assert config.trained == Lora(rank=16, alpha=16, dropout=0.1, separate_qkv=True, biases=True, after_blocks=True)
    assert config.optimizer == AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, grad_clip_norm=1.0)
    assert config.schedule.type == "constant"
    assert (config.sample_latents, config.anchor.type) == (True, "none")
    assert config.augmentation == CropSettings(crop_scale=(0.9, 1.0), crop_ratio=(0.75, 4 / 3))
    if preset == "dcr":
        loss: Any = config.loss
        assert (loss.temperature, loss.view_scale, loss.view_ratio) == (0.1, (0.9, 1.0), (0.9, 1.1))


def test_dropout_is_drawn_in_training_only(clip: ClipCheckpoint, generators: dict[str, GeneratorCheckpoint]) -> None:
    task = make_task("genhancer", clip, generators["genhancer"])
    inputs = make_inputs(task)
    plain = task(inputs)[0]
    assert torch.equal(plain, task(inputs)[0])
    losses = {task.train()(inputs)[0].item() for _ in range(3)}
    assert len({*losses, plain.item()}) == 4
    assert torch.equal(plain, task.eval()(inputs)[0])


def test_the_merged_tower_equals_the_changed_one(
    clip: ClipCheckpoint, generators: dict[str, GeneratorCheckpoint], tmp_path: Path
) -> None:
    task = make_task("genhancer", clip, generators["genhancer"])
    with torch.no_grad():
        for name, parameter in task.visual.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter.add_(0.1)
    before = task.features(make_inputs(task)).embeds
    merged = load_clip(task.export(tmp_path / "merged"))
    source = weights(load_clip(clip).module)
    assert {name: value.shape for name, value in weights(merged.module).items()} == {
        name: value.shape for name, value in source.items()
    }
    embeds = merged.module.visual(merged.pixels(make_inputs(task).images))  # type: ignore[operator]
    torch.testing.assert_close(embeds, before, atol=1e-5, rtol=1e-5)
    assert not torch.equal(merged.module.visual.proj, source["visual.proj"])


def test_the_preset_trains_both_stages(pool: Pool, clip: ClipCheckpoint, tmp_path: Path) -> None:
    flux = family_generator("flux", tmp_path / "flux")
    config = tune_config(preset="genhancer", steps=2, precision="fp32", image_size=16, adapter={"first_steps": 2})
    tuned = run(config, tmp_path / "tuned", clip=clip, prior=flux, pool=pool)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"visual.proj", "visual.transformer.resblocks.0.attn.in_proj_bias"} <= moved
    assert all(name.startswith("visual.") for name in moved)
