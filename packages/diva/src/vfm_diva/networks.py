"""How each kind of diffusers' denoisers is called, and what it wants to be told: UNets and flow transformers."""

# B batch, C channels, h and w sides of the denoised sample, K context tokens, W their width, P width of the vector

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor

from vfm.config import UserError
from vfm_diva.told import Told

KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (UNet2DConditionModel, SD3Transformer2DModel, FluxTransformer2DModel)
}
SDXL_DOWNSCALE = 8  # of its VAE: its size conditions are in pixels
FLUX_PATCH = 2  # a token of Flux is so many latents a side
FLUX_GUIDANCE = 1.0  # the distilled guidance at which Flux follows the condition as data do


@dataclass(frozen=True)
class Wants:
    """What a denoiser takes.

    channels: C.
    multiple: both sides of a sample are multiples of it.
    context_width: W.
    pooled_width: P; 0 where it takes no vector.
    class_width: of P, what is a class embedding's (un-CLIP), else 0.
    """

    channels: int
    multiple: int
    context_width: int
    pooled_width: int = 0
    class_width: int = 0


def wants(network: Any) -> Wants:
    """What a denoiser takes, as its configuration says; looks at no weights.

    Raises:
        UserError: it is of another kind, or wants a condition that nothing here gives.
    """
    config = network.config
    if isinstance(network, SD3Transformer2DModel):
        width, pooled = config.joint_attention_dim, config.pooled_projection_dim
        return Wants(config.in_channels, config.patch_size, width, pooled)
    if isinstance(network, FluxTransformer2DModel):
        width, pooled = config.joint_attention_dim, config.pooled_projection_dim
        return Wants(config.in_channels // FLUX_PATCH**2, FLUX_PATCH, width, pooled)
    multiple = 2 ** (len(config.block_out_channels) - 1)
    return Wants(config.in_channels, multiple, _context_width(config), *_vectors(config))


def _context_width(config: Any) -> int:
    width = config.cross_attention_dim
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if len(widths) > 1:
        raise UserError(
            f"its UNet's levels attend to contexts of several widths ({', '.join(map(str, sorted(widths)))})"
        )
    return int(widths.pop())


def _vectors(config: Any) -> tuple[int, int]:
    """Widths of the vector that a UNet takes, and of it what is a class embedding."""
    if config.encoder_hid_dim_type or config.num_class_embeds:
        key = "encoder_hid_dim_type" if config.encoder_hid_dim_type else "num_class_embeds"
        raise UserError(f"its UNet wants a condition that diva does not give ({key})")
    if config.class_embed_type not in (None, "projection"):
        raise UserError(
            f"its UNet wants a condition that diva does not give (class_embed_type {config.class_embed_type})"
        )
    if config.addition_embed_type not in (None, "text_time"):
        kind = config.addition_embed_type
        raise UserError(f"its UNet wants a condition that diva does not give (addition_embed_type {kind})")
    if config.class_embed_type and config.addition_embed_type:
        raise UserError("its UNet wants two vectors (class_embed_type, addition_embed_type); diva gives one")
    width = config.projection_class_embeddings_input_dim
    if config.class_embed_type:
        return int(width), int(width)
    return (int(width) - 6 * config.addition_time_embed_dim if config.addition_embed_type else 0), 0


def predict(network: Any, noisy: Tensor, timesteps: Tensor, told: Told) -> Tensor:
    """What a denoiser says of noisy samples, (B, C, h, w).

    Args:
        network: one that `wants` knows.
        noisy: (B, C, h, w).
        timesteps: on the scale of 0 to the schedule's length, (B,).
        told: what it takes.
    """
    if isinstance(network, SD3Transformer2DModel):
        return torch.as_tensor(network(noisy, told.tokens, told.pooled, timesteps).sample)
    if isinstance(network, FluxTransformer2DModel):
        return _flux(network, noisy, timesteps, told)
    more: dict[str, Any] = {}
    config = getattr(network, "config", None)
    if getattr(config, "class_embed_type", None):
        more["class_labels"] = told.pooled
    if getattr(config, "addition_embed_type", None):
        more["added_cond_kwargs"] = {"text_embeds": told.pooled, "time_ids": _whole_picture(noisy)}
    said = network(noisy, timesteps, encoder_hidden_states=told.tokens, **more)
    return torch.as_tensor(said.sample)


def _whole_picture(noisy: Tensor) -> Tensor:
    """SDXL's size conditions of a picture that was not cropped: its own size, no offset, the size asked for; (B, 6)."""
    height, width = (SDXL_DOWNSCALE * side for side in noisy.shape[2:])
    return noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), 6)


def _flux(network: Any, noisy: Tensor, timesteps: Tensor, told: Told) -> Tensor:
    """Flux takes squares of latents as tokens, says where each lies, and counts time from 0 to 1."""
    count, channels, height, width = noisy.shape
    rows, columns, patch = height // FLUX_PATCH, width // FLUX_PATCH, FLUX_PATCH
    squares = noisy.view(count, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    places = torch.zeros(rows, columns, 3, device=noisy.device)
    places[..., 1] += torch.arange(rows, device=noisy.device)[:, None]
    places[..., 2] += torch.arange(columns, device=noisy.device)
    said = network(
        squares.reshape(count, rows * columns, -1),
        encoder_hidden_states=told.tokens,
        pooled_projections=told.pooled,
        timestep=timesteps / 1000,
        img_ids=places.flatten(0, 1),
        txt_ids=places.new_zeros(told.tokens.shape[1], 3),
        guidance=noisy.new_full((count,), FLUX_GUIDANCE) if network.config.guidance_embeds else None,
    ).sample
    whole: Tensor = said.view(count, rows, columns, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return whole.reshape(noisy.shape)
