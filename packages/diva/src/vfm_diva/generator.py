"""Generators on disk and in memory: diffusers' layout, and a condition map beside it for those trained here.

unet/ or transformer/  scheduler/  vae/ where it works in latents    as diffusers writes and reads them
pixels/config.json                                   the scale of the pixels, where it works in them
condition/config.json, model.safetensors             the map from CLIP's joint space (`ConditionMap`); for a prior that
                                                     is told a text's states the configuration alone, which is empty
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
from vfm.models.generator import denoiser as denoiser_folder
from vfm_diva.condition_map import ConditionMap, mark_of_states
from vfm_diva.denoiser import Denoiser
from vfm_diva.networks import KINDS, Wants, wants
from vfm_diva.space import PixelSpace, Space, check_scale, load_part, load_space
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
    folder: Path | None = None  # where it was loaded from: its text encoder may lie there

    @property
    def image_size(self) -> int:
        """Side of the pictures it was trained on."""
        return self.sample_size * self.space.downscale

    @property
    def wants(self) -> Wants:
        """What its denoiser is to be told."""
        return wants(self.denoiser.network)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, h, h) at its own size."""
        return self.noise_shape_at(self.image_size)

    def noise_shape_at(self, image_size: int) -> tuple[int, int, int]:
        """(C, h, h) for pictures of another size.

        Raises:
            UserError: the VAE and the network cannot halve this size as often as they do.
        """
        multiple = self.space.downscale * self.wants.multiple
        if image_size % multiple:
            raise UserError(f"image_size {image_size} is not a multiple of {multiple}, as the generator needs")
        side = image_size // self.space.downscale
        return self.space.channels, side, side

    def save(self, directory: Path) -> GeneratorCheckpoint:
        """Writes the parts and returns the artifact."""
        network = self.denoiser.network
        is_unet = isinstance(network, UNet2DConditionModel)
        network.save_pretrained(directory / ("unet" if is_unet else "transformer"))
        self.scheduler.save_pretrained(directory / "scheduler")
        self.space.save(directory)
        if self.condition_map:
            self.condition_map.save(directory / CONDITION)
        elif not self.folder:  # made here
            mark_of_states(directory / CONDITION)
        return GeneratorCheckpoint.create(
            directory,
            sample_size=self.sample_size,
            condition_width=self.wants.context_width,
            prediction=self.denoiser.prediction,
        )


def build_generator(
    *,
    image_size: int,
    embed_dim: int | None,
    num_tokens: int = 4,
    condition_width: int = 64,
    block_out_channels: tuple[int, ...] = (16, 32, 64),
    attention_levels: int = 1,
    layers_per_block: int = 1,
    prediction: DiffusionKind = "v",
    space: Space | None = None,
    seed: int = 0,
) -> Generator:
    """A small generator with random weights, conditioned on a joint space of width `embed_dim`, or on a text's states.

    The first levels of the UNet only convolve and the last `attention_levels` attend, since attention at full
    resolution costs most and a context that speaks of the whole picture needs it least.

    Args:
        embed_dim: None is told states of width `condition_width`, and there is no condition map.
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
        condition_map = ConditionMap(embed_dim, num_tokens, condition_width) if embed_dim else None
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
    """The parts of a checkpoint: one of `diva.prior`, or a pretrained text-to-image model.

    Args:
        checkpoint: in diffusers' layout.
        weights: False reads the configurations alone; the parts lie on the meta device.

    Raises:
        UserError: the denoiser is of a kind that is not known here, or its VAE is missing, of another kind or another
            scale.
    """
    folder = checkpoint.path
    network = _load_network(folder, weights=weights)
    space = load_space(folder, weights=weights)
    condition = folder / CONDITION
    try:
        channels = wants(network).channels
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if channels != space.channels:
        raise UserError(f"{folder}: its denoiser takes {channels} channels; {space.name} have {space.channels}")
    if not condition.is_dir():  # a prior trained here may work in anybody's latents
        check_scale(space, network, folder)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    if checkpoint.prediction == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, use_dynamic_shifting=False)
    else:
        scheduler = DDIMScheduler.from_config(config)
    denoiser = Denoiser(network, checkpoint.prediction, _alphas_cumprod(scheduler))
    condition_map = ConditionMap.load(condition, weights=weights)
    return Generator(denoiser, space, scheduler, condition_map, checkpoint.sample_size, folder)


def _load_network(folder: Path, *, weights: bool) -> Any:
    part = folder / denoiser_folder(folder)
    name = json.loads((part / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if name not in KINDS:
        raise UserError(f"{folder}: its denoiser is of kind {name}; diva takes {', '.join(KINDS)}")
    return load_part(KINDS[name], part, weights=weights)


def _alphas_cumprod(scheduler: Any) -> torch.Tensor:
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # its path is straight; only the length is used
        return torch.linspace(1, 0, scheduler.config.num_train_timesteps)
    alphas: torch.Tensor = scheduler.alphas_cumprod
    return alphas
