"""Generators on disk and in memory: diffusers' layout, and a condition map beside it for those trained here.

unet/  scheduler/  vae/ where it works in latents    as diffusers writes and reads them
pixels/config.json                                   the scale of the pixels, where it works in them
condition/config.json, model.safetensors             the map from CLIP's joint space (`ConditionMap`)
"""

# C channels, h side of the denoised sample

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from vfm.artifacts import GeneratorCheckpoint
from vfm.config import UserError
from vfm_diva.condition import ConditionMap
from vfm_diva.denoiser import Denoiser
from vfm_diva.space import PixelSpace, Space, load_part, load_space
from vfm_kernels.diffusion import DiffusionKind

CONDITION = "condition"
NUM_TRAIN_TIMESTEPS = 1000
# Stable Diffusion's schedule.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}


@dataclass
class Generator:
    """A diffusion model in parts: what denoises, where, by which schedule, and told what."""

    denoiser: Denoiser
    space: Space
    scheduler: Any  # diffusers' DDIM, or Euler for flow
    condition_map: ConditionMap | None
    sample_size: int  # h

    @property
    def image_size(self) -> int:
        """Side of the pictures it was trained on."""
        return self.sample_size * self.space.downscale

    @property
    def condition_width(self) -> int:
        """Channels of the context."""
        width: int = self.denoiser.unet.config.cross_attention_dim
        return width

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, h, h) at its own size."""
        return self.noise_shape_at(self.image_size)

    def noise_shape_at(self, image_size: int) -> tuple[int, int, int]:
        """(C, h, h) for pictures of another size.

        Raises:
            UserError: the VAE and the UNet cannot halve this size as often as they do.
        """
        halvings = len(self.denoiser.unet.config.block_out_channels) - 1
        multiple = self.space.downscale * 2**halvings
        if image_size % multiple:
            raise UserError(f"image_size {image_size} is not a multiple of {multiple}, as the generator needs")
        side = image_size // self.space.downscale
        return self.space.channels, side, side

    def save(self, directory: Path) -> GeneratorCheckpoint:
        """Writes the parts and returns the artifact."""
        self.denoiser.unet.save_pretrained(directory / "unet")
        self.scheduler.save_pretrained(directory / "scheduler")
        self.space.save(directory)
        if self.condition_map:
            self.condition_map.save(directory / CONDITION)
        return GeneratorCheckpoint.create(
            directory,
            sample_size=self.sample_size,
            condition_width=self.condition_width,
            prediction=self.denoiser.prediction,
        )


def build_generator(
    *,
    image_size: int,
    embed_dim: int,
    num_tokens: int = 4,
    condition_width: int = 64,
    block_out_channels: tuple[int, ...] = (16, 32, 64),
    attention_levels: int = 1,
    layers_per_block: int = 1,
    prediction: DiffusionKind = "v",
    space: Space | None = None,
    seed: int = 0,
) -> Generator:
    """A small generator with random weights, conditioned on a joint space of width `embed_dim`.

    The first levels of the UNet only convolve and the last `attention_levels` attend, since attention at full
    resolution costs most and a context that speaks of the whole picture needs it least.

    Args:
        space: where it denoises; None is pixels.

    Raises:
        UserError: the size does not fit the levels.
    """
    space = space or PixelSpace()
    plain = len(block_out_channels) - attention_levels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=image_size // space.downscale,
            in_channels=space.channels,
            out_channels=space.channels,
            block_out_channels=block_out_channels,
            down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * attention_levels,
            up_block_types=("CrossAttnUpBlock2D",) * attention_levels + ("UpBlock2D",) * plain,
            layers_per_block=layers_per_block,
            cross_attention_dim=condition_width,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        condition_map = ConditionMap(embed_dim, num_tokens, condition_width)
    if prediction == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS)
    else:
        scheduler = DDIMScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            prediction_type=PREDICTION_TYPES[prediction],
            clip_sample=False,
            timestep_spacing="trailing",
            **BETAS,
        )
    denoiser = Denoiser(unet, prediction, _alphas_cumprod(scheduler))
    generator = Generator(denoiser, space, scheduler, condition_map, image_size // space.downscale)
    generator.noise_shape_at(image_size)
    return generator


def load_generator(checkpoint: GeneratorCheckpoint, *, weights: bool = True) -> Generator:
    """The parts of a checkpoint: one of `diva.prior`, or a text-to-image model with a UNet.

    Args:
        checkpoint: in diffusers' layout.
        weights: False reads the configurations alone; the parts lie on the meta device.

    Raises:
        UserError: the denoiser is no UNet with cross attention alone, or its VAE is missing or of another kind.
    """
    folder = checkpoint.path
    unet = _load_unet(folder, weights=weights)
    space = load_space(folder, weights=weights)
    if unet.config.in_channels != space.channels:
        raise UserError(
            f"{folder}: its UNet takes {unet.config.in_channels} channels; {space.name} have {space.channels}"
        )
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    kind = FlowMatchEulerDiscreteScheduler if checkpoint.prediction == "flow" else DDIMScheduler
    scheduler = kind.from_config(config)
    denoiser = Denoiser(unet, checkpoint.prediction, _alphas_cumprod(scheduler))
    condition = folder / CONDITION
    condition_map = ConditionMap.load(condition, weights=weights) if condition.is_dir() else None
    return Generator(denoiser, space, scheduler, condition_map, checkpoint.sample_size)


def _load_unet(folder: Path, *, weights: bool) -> Any:
    if not (folder / "unet").is_dir():
        raise UserError(f"{folder}: its denoiser is a transformer; diva takes a UNet with cross attention")
    config = UNet2DConditionModel.load_config(folder / "unet")
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if config.get(key):
            raise UserError(f"{folder}: its UNet wants a second condition ({key}); diva gives cross attention alone")
    return load_part(UNet2DConditionModel, folder / "unet", weights=weights)


def _alphas_cumprod(scheduler: Any) -> torch.Tensor:
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # its path is straight; only the length is used
        return torch.linspace(1, 0, scheduler.config.num_train_timesteps)
    alphas: torch.Tensor = scheduler.alphas_cumprod
    return alphas
