"""Generators on disk and in memory: diffusers' layout, with a condition map for generators that were trained here.

unet/ or transformer/, scheduler/, vae/ if it denoises latents    as diffusers writes and reads them
pixels/config.json                                                the scale of the pixels, if it denoises pixels
condition/config.json, model.safetensors                          the map from CLIP's joint space (`ConditionMap`); a
                                                                  prior conditioned on text states has an empty
                                                                  configuration and no weights
"""

# B batch, C channels, h side of the denoised sample, S side of the image

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from vfm.models import denoiser_folder
from vfm.plugin import GeneratorCheckpoint, UserError, store_files
from vfm_diva.generator.condition_map import ConditionMap, MapLayers, save_without_map
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.denoiser import Denoiser
from vfm_diva.generator.networks import NETWORKS, NetworkInputs, network_inputs, take_vectors
from vfm_diva.generator.space import PixelSpace, Space, check_scale, load_model, load_space
from vfm_diva.parts.network_parts import DenoiserNetwork, UNet
from vfm_kernels import DiffusionKind

CONDITION = "condition"
NUM_TRAIN_TIMESTEPS = 1000  # Stable Diffusion's, and that of nearly all public generators
# Stable Diffusion's schedule.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}


@dataclass
class Generator:
    """Parts of a diffusion model."""

    denoiser: Denoiser
    space: Space
    scheduler: Any  # diffusers' DDIM, or Euler for flow
    condition_map: ConditionMap | None
    sample_size: int  # h
    folder: Path | None = None  # folder that it was loaded from, where its text encoder may be

    @property
    def image_size(self) -> int:
        """Side of the images that it was trained on."""
        return self.sample_size * self.space.downscale

    @property
    def inputs(self) -> NetworkInputs:
        """Shapes of its network's inputs."""
        return network_inputs(self.denoiser.network)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, h, h) at its training size."""
        return self.noise_shape_at(self.image_size)

    def noise_shape_at(self, image_size: int) -> tuple[int, int, int]:
        """Compute (C, h, h) for images of another size.

        Raises:
            UserError: If the VAE and the network cannot halve this size that often, or the network takes one size.
        """
        multiple = self.space.downscale * self.inputs.multiple
        if image_size % multiple:
            raise UserError(f"image_size must be a multiple of {multiple} for this generator, got {image_size}")
        side = image_size // self.space.downscale
        if self.inputs.side not in (None, side):
            raise UserError(f"image_size must be {self.image_size}, the only size of this generator, got {image_size}")
        return self.space.channels, side, side

    def save(self, directory: Path) -> GeneratorCheckpoint:
        """Write the parts and return the artifact."""
        network = self.denoiser.network
        is_unet = isinstance(network, UNet2DConditionModel)
        network.save_pretrained(directory / ("unet" if is_unet else "transformer"))
        self.scheduler.save_pretrained(directory / "scheduler")
        self.space.save(directory)
        if self.condition_map:
            self.condition_map.save(directory / CONDITION)
        elif not self.folder:  # trained here
            save_without_map(directory / CONDITION)
        return GeneratorCheckpoint.create(
            directory,
            sample_size=self.sample_size,
            condition_width=self.inputs.context_width,
            prediction=self.denoiser.prediction,
        )


def build_generator(
    *,
    image_size: int,
    embed_dim: int | None,
    num_tokens: int = 4,
    condition_width: int = 64,
    layers: MapLayers = "linear",
    network: DenoiserNetwork | None = None,
    prediction: DiffusionKind = "v",
    space: Space | None = None,
    seed: int = 0,
) -> Generator:
    """Create a generator with random weights, conditioned on a joint space or on text states.

    Args:
        image_size: Side of the images.
        embed_dim: Width of the joint space. None means that text states condition it, without a condition map.
        num_tokens: Context tokens that an embedding is mapped to.
        condition_width: Width of the context tokens or of the text states.
        layers: Layers of the map from the joint space.
        network: Configuration of the network. The default is a small UNet.
        prediction: Target of the network.
        space: Space in which it denoises. The default is pixels.
        seed: Seed of the weights.

    Raises:
        UserError: If the size does not fit the network.
    """
    space = space or PixelSpace()
    sample_size = image_size // space.downscale
    with torch.random.fork_rng(devices=[]):  # diffusers draws from the global generator, which must not change
        torch.manual_seed(seed)
        built = (network or UNet()).build(
            sample_size=sample_size, channels=space.channels, context_width=condition_width
        )
        condition_map = None
        if embed_dim:
            vector_width = network_inputs(built).pooled_width
            condition_map = ConditionMap(embed_dim, num_tokens, condition_width, vector_width, layers)
    if prediction == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS)
    else:
        scheduler = DDIMScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            prediction_type=PREDICTION_TYPES[prediction],
            clip_sample=False,
            # The last step of the schedule is pure noise, from which sampling starts (Lin et al. 2024,
            # arXiv:2305.08891).
            timestep_spacing="trailing",
            **BETAS,
        )
    denoiser = Denoiser(built, prediction, _alphas_cumprod(scheduler))
    generator = Generator(denoiser, space, scheduler, condition_map, sample_size)
    # Fail here and not in the first step if the size does not fit.
    generator.noise_shape_at(image_size)
    return generator


def load_generator(checkpoint: GeneratorCheckpoint, *, weights: bool = True) -> Generator:
    """Load a generator from a checkpoint.

    Args:
        checkpoint: A `diva.prior` or a pretrained text-to-image model, in diffusers' layout.
        weights: False reads only the configurations, and the parts are on the meta device.

    Raises:
        UserError: If the denoiser's class is unknown, or its VAE is missing, or of an unknown class or a wrong scale.
    """
    folder = checkpoint.path
    network = _load_network(folder, weights=weights)
    space = load_space(folder, weights=weights)
    condition = folder / CONDITION
    config_file = folder / denoiser_folder(folder) / "config.json"
    try:
        channels = network_inputs(network).channels
    except UserError as error:
        raise UserError(f"{config_file}: {error}") from None
    if channels != space.channels:
        raise UserError(f"{config_file}: the denoiser expects {channels} channels, {space.name} have {space.channels}")
    if not condition.is_dir():  # a prior trained here may denoise the latents of any VAE
        check_scale(space, network, folder)
    config = store_files.read_record(folder / "scheduler" / "scheduler_config.json")
    if checkpoint.prediction == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, use_dynamic_shifting=False)
    else:
        scheduler = DDIMScheduler.from_config(config)
    denoiser = Denoiser(network, checkpoint.prediction, _alphas_cumprod(scheduler))
    condition_map = ConditionMap.load(condition, weights=weights)
    return Generator(denoiser, space, scheduler, condition_map, checkpoint.sample_size, folder)


def _load_network(folder: Path, *, weights: bool) -> Any:
    part = folder / denoiser_folder(folder)
    file = part / "config.json"
    name = store_files.read_record(file).get("_class_name")
    if name not in NETWORKS:
        raise UserError(f"{file}: expected a denoiser of class {', '.join(NETWORKS)}; got {name}")
    return take_vectors(load_model(NETWORKS[name], part, weights=weights))


def _alphas_cumprod(scheduler: Any) -> Tensor:
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # its path is straight, so only the length is used
        return torch.linspace(1, 0, scheduler.config.num_train_timesteps)
    alphas: Tensor = scheduler.alphas_cumprod
    return alphas


def randomize_weights(generator: Generator, *, seed: int) -> None:
    """Randomize the weights of the generator's network. Schedule, space and condition map do not change."""
    network = generator.denoiser.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator.denoiser.network = take_vectors(type(network).from_config(network.config))


@torch.no_grad()
def sample_images(
    generator: Generator,
    conditioning: Conditioning,
    *,
    image_size: int | None = None,
    empty: Conditioning | None = None,
    guidance: float = 2.0,
    num_steps: int = 25,
    seed: int = 0,
) -> Tensor:
    """Sample images, uint8 (B, 3, S, S), by DDIM, or by Euler steps for flow. A seed always gives the same noise.

    Args:
        generator: Diffusion model.
        conditioning: Conditioning of each image.
        image_size: Side S of the images. The default is the generator's training size.
        empty: Empty conditioning for classifier-free guidance. Without it there is no guidance.
        guidance: Scale of the guidance. Above 1 the condition is followed more strongly than in training.
        num_steps: Passes of the network.
        seed: Seed of the initial noise.

    Sources: Song et al. 2020, DDIM (arXiv:2010.02502), and Ho and Salimans 2022, classifier-free guidance
    (arXiv:2207.12598).
    """
    # A copy, since set_timesteps changes the scheduler.
    denoiser = generator.denoiser
    scheduler = deepcopy(generator.scheduler)
    scheduler.set_timesteps(num_steps)
    shape = generator.noise_shape_at(image_size or generator.image_size)
    device = conditioning.tokens.device
    # On the CPU, whose generator gives the same noise on every machine.
    noise = torch.randn(len(conditioning), *shape, generator=torch.Generator().manual_seed(seed))
    sample = noise.to(device)
    for timestep in scheduler.timesteps:
        times = timestep.to(device).expand(len(sample))
        predicted = denoiser.predict(sample, times, conditioning)
        if empty is not None:
            plain = denoiser.predict(sample, times, empty)
            # Classifier-free guidance (Ho and Salimans 2022).
            predicted = plain + guidance * (predicted - plain)
        sample = scheduler.step(predicted, timestep, sample).prev_sample
    return generator.space.decode(sample)
