"""Layouts of published generators, tiny and with random weights: sixteen load and tune, others are refused."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diva_families import CONTEXT, FLUX, POOLED, SD3, SDXL, UNCLIP, UNET, WIDTH, family_clip
from vfm.models import ClipModel, import_generator, load_clip
from vfm.plugin import UserError
from vfm_diva import Feedback
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import Generator, load_generator
from vfm_diva.generator.inputs import TuneInputs
from vfm_diva.tune.tune_task import TuneTask

ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
PIXART = {
    **ATTENTION,
    "attention_head_dim": 12,  # a third of all channels is for each of three sizes
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 24,
    "caption_channels": CONTEXT,
    "sample_size": 8,
    "norm_num_groups": 4,
}
DIT = {
    **ATTENTION, "in_channels": 4, "out_channels": 8, "sample_size": 8, "norm_num_groups": 4, "num_embeds_ada_norm": 10
}  # fmt: skip
KANDINSKY = {
    **UNET,
    "out_channels": 8,
    "addition_embed_type": "image",
    "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "image_proj",
}
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "block_out_channels": (8, 8),
}
MOVQ = {**KL, "block_out_channels": (32, 32), "norm_num_groups": 8, "norm_type": "spatial"}
MOVQ |= {"vq_embed_dim": 4, "num_vq_embeddings": 8}
TINY = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
TINY |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
V = {"prediction_type": "v_prediction"}

# name: network, its class, scheduler and its settings, scale of an AutoencoderKL (or another VAE)
Layout = tuple[str, dict[str, Any], str, dict[str, Any], Any]
LAYOUTS: dict[str, Layout] = {
    "SD 1.5": ("UNet2DConditionModel", UNET, "PNDMScheduler", SD_BETAS, 0.18215),
    "SD 2.1-base": (
        "UNet2DConditionModel", {**UNET, "use_linear_projection": True}, "DDIMScheduler", SD_BETAS, 0.18215
    ),
    "SD 2.1": ("UNet2DConditionModel", UNET, "DDIMScheduler", SD_BETAS | V, 0.18215),
    "SD with TAESD": ("UNet2DConditionModel", UNET, "PNDMScheduler", SD_BETAS, "AutoencoderTiny"),
    "SDXL": ("UNet2DConditionModel", {**UNET, **SDXL}, "EulerDiscreteScheduler", SD_BETAS, 0.13025),
    "SDXL-Turbo": (
        "UNet2DConditionModel", {**UNET, **SDXL}, "EulerAncestralDiscreteScheduler",
        {**SD_BETAS, "timestep_spacing": "trailing"}, 0.13025,
    ),
    "Playground 2": ("UNet2DConditionModel", {**UNET, **SDXL}, "DPMSolverMultistepScheduler", SD_BETAS, 0.13025),
    "Stable unCLIP": ("UNet2DConditionModel", {**UNET, **UNCLIP}, "PNDMScheduler", SD_BETAS | V, 0.18215),
    "Kandinsky 2.2": ("UNet2DConditionModel", KANDINSKY, "DDPMScheduler", SD_BETAS, "VQModel"),
    "SD3": ("SD3Transformer2DModel", SD3, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 1.5305),
    "SD3.5": (
        "SD3Transformer2DModel", {**SD3, "qk_norm": "rms_norm"}, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0},
        1.5305,
    ),
    "Flux-dev": (
        "FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}, "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True}, 0.3611,
    ),
    "Flux-schnell": ("FluxTransformer2DModel", FLUX, "FlowMatchEulerDiscreteScheduler", {}, 0.3611),
    "PixArt-alpha": (
        "PixArtTransformer2DModel", {**PIXART, "use_additional_conditions": True}, "DPMSolverMultistepScheduler",
        LINEAR_BETAS, 0.18215,
    ),
    "PixArt-Sigma": (
        "PixArtTransformer2DModel", {**PIXART, "use_additional_conditions": False}, "DPMSolverMultistepScheduler",
        LINEAR_BETAS, 0.13025,
    ),
    "DiT": ("DiTTransformer2DModel", DIT, "DDIMScheduler", LINEAR_BETAS, 0.18215),
}  # fmt: skip
SIDE = 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return load_clip(family_clip("openai", tmp_path_factory.mktemp("clip")))


def publish(layout: Layout, folder: Path) -> Path:
    """Write a generator as its authors publish it."""
    kind, config, scheduler, settings, vae = layout
    torch.manual_seed(0)
    network = getattr(diffusers, kind)(**config)
    network.save_pretrained(folder / ("unet" if kind.startswith("UNet") else "transformer"))
    getattr(diffusers, scheduler)(**settings).save_pretrained(folder / "scheduler")
    if vae == "VQModel":
        diffusers.VQModel(**MOVQ).save_pretrained(folder / "movq")
    elif vae == "AutoencoderTiny":
        diffusers.AutoencoderTiny(**TINY).save_pretrained(folder / "vae")
    else:
        diffusers.AutoencoderKL(**KL, scaling_factor=vae).save_pretrained(folder / "vae")
    return folder


def load(name: str, folder: Path) -> Generator:
    source = publish(LAYOUTS[name], folder / "source")
    return load_generator(import_generator(str(source), folder / "generator"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_loads_and_its_error_trains_the_tower(name: str, clip: ClipModel, tmp_path: Path) -> None:
    generator = load(name, tmp_path)
    plain = "flow" if LAYOUTS[name][2].startswith("FlowMatch") else "epsilon"
    assert generator.denoiser.prediction == {"SD 2.1": "v", "Stable unCLIP": "v"}.get(name, plain)
    feedback = Feedback(adapter={"type": "linear"}, anchor={"type": "none"}, image_size=SIDE)
    task = TuneTask(deepcopy(clip), generator, feedback)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8)
    shape = generator.noise_shape_at(SIDE)
    inputs = TuneInputs(
        images=images,
        target_images=images,
        noise=torch.randn(2, 1, *shape, generator=draws),
        times=torch.rand(2, 1, generator=draws),
    )
    loss = task(inputs)[0]
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in task.visual.parameters() if p.requires_grad and p.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0


def samples(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pixart_is_called_as_in_its_pipeline(tmp_path: Path) -> None:
    generator = load("PixArt-alpha", tmp_path)
    noisy, tokens, steps = samples(2, 4, 8, 8), samples(2, 3, CONTEXT), torch.tensor([3, 700])
    sizes = {"resolution": torch.full((2, 2), 64.0), "aspect_ratio": torch.ones(2, 1)}
    network = generator.denoiser.network
    theirs = network(noisy, encoder_hidden_states=tokens, timestep=steps, added_cond_kwargs=sizes).sample
    torch.testing.assert_close(generator.denoiser.predict(noisy, steps, Conditioning(tokens)), theirs[:, :4])


def test_dit_with_the_embedding_of_a_class_equals_dit_with_its_number(tmp_path: Path) -> None:
    generator = load("DiT", tmp_path)
    plain = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "source" / "transformer").eval()
    table = plain.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    for block in plain.transformer_blocks:  # published weights have the same table in every block
        block.norm1.emb.class_embedder.embedding_table.weight = table
    noisy, steps, classes = samples(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 4])
    theirs = plain(noisy, timestep=steps, class_labels=classes).sample[:, :4]
    ours = generator.denoiser.predict(noisy, steps, Conditioning(torch.zeros(2, 0, 0), table[classes]))
    torch.testing.assert_close(ours, theirs)


def test_kandinsky_takes_an_embedding_of_its_own_width_without_an_adapter(clip: ClipModel, tmp_path: Path) -> None:
    generator = load("Kandinsky 2.2", tmp_path)
    noisy, embeds, steps = samples(2, 4, 8, 8), samples(2, WIDTH), torch.tensor([3, 700])
    network = generator.denoiser.network
    theirs = network(noisy, steps, encoder_hidden_states=None, added_cond_kwargs={"image_embeds": embeds}).sample
    ours = generator.denoiser.predict(noisy, steps, Conditioning(torch.zeros(2, 0, 0), embeds))
    torch.testing.assert_close(ours, theirs[:, :4])
    task = TuneTask(deepcopy(clip), generator, Feedback(anchor={"type": "none"}, image_size=SIDE))
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    features = task.features(TuneInputs(images=images, noise=samples(2, 1, 4, 8, 8), times=torch.rand(2, 1)))
    vector = task.conditioner(features).pooled
    torch.testing.assert_close(vector, features.embeds)
    movq = diffusers.VQModel.from_pretrained(tmp_path / "source" / "movq").eval()
    with torch.no_grad():  # its pipelines scale neither way
        latents = movq.encode(images.float() / 127.5 - 1).latents
        torch.testing.assert_close(generator.space(images), latents)
        decoded = movq.decode(latents, force_not_quantize=True).sample
    expected = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(generator.space.decode(latents), expected)


def with_file(folder: Path, part: str, **changes: Any) -> None:
    file = folder / part
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "Playground 2.5": (
        "SDXL", "scheduler/scheduler_config.json",
        {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0}, "got EDMDPMSolverMultistepScheduler",
    ),
    "Playground 2.5's VAE": ("SDXL", "vae/config.json", {"latents_mean": [0.0] * 4}, "got latents_mean"),
    "an unknown scale": ("SDXL", "vae/config.json", {"scaling_factor": 0.5}, "got 0.5, that of no known family"),
    "SDXL with SD's VAE": ("SDXL", "vae/config.json", {"scaling_factor": 0.18215}, "got 0.18215, that of Stable"),
    "PixArt with SD3's VAE": ("PixArt-Sigma", "vae/config.json", {"scaling_factor": 1.5305}, "0.18215 of Stable Diff"),
    "LCM": ("SD 1.5", "scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "got LCMScheduler"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_read_wrongly_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    layout, part, changes, message = REFUSED[name]
    source = publish(LAYOUTS[layout], tmp_path / "source")
    with_file(source, part, **changes)
    with pytest.raises(UserError) as caught:
        load_generator(import_generator(str(source), tmp_path / "generator"), weights=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pooled_widths_are_of_the_published_vectors(tmp_path: Path) -> None:
    widths = {name: load(name, tmp_path / name).inputs for name in ("SDXL", "SD3", "DiT", "Kandinsky 2.2")}
    assert {name: (w.context_width, w.pooled_width, w.embed_width) for name, w in widths.items()} == {
        "SDXL": (CONTEXT, POOLED, 0),
        "SD3": (CONTEXT, POOLED, 0),
        "DiT": (0, 16, 0),
        "Kandinsky 2.2": (0, WIDTH, WIDTH),
    }
