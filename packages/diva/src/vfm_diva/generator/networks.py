"""Inputs and calls of each kind of diffusers' denoising networks."""

# B batch, C channels, h and w sides of the denoised sample, K context tokens, W their width, P width of the vector

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from vfm.plugin import UserError
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.mlp_denoiser import MlpDenoiser
from vfm_diva.parts.network_parts import FlowTransformer, Mlp, UNet

NETWORKS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        UNet2DConditionModel,
        SD3Transformer2DModel,
        FluxTransformer2DModel,
        PixArtTransformer2DModel,
        DiTTransformer2DModel,
        MlpDenoiser,
    )
}
"""Known classes, by the name in a generator's folder. A class added here must be called like a UNet."""

# Further conditions that a UNet's configuration may name, and the supported values.
CONDITION_TYPES: dict[str, tuple[str, ...]] = {
    "encoder_hid_dim_type": (),
    "num_class_embeds": (),
    "class_embed_type": ("projection",),
    "addition_embed_type": ("text_time",),
}
SDXL_DOWNSCALE = 8  # of its VAE, since its size conditions are in pixels. Also PixArt-alpha's
FLUX_PATCH = 2  # a token of Flux is a square of 2 x 2 latents
FLUX_GUIDANCE = 1.0  # the distilled guidance scale at which Flux follows the condition as strongly as the data do


@dataclass(frozen=True)
class NetworkInputs:
    """Shapes of a network's inputs.

    Attributes:
        channels: Number C of channels.
        multiple: Both sides of a sample must be multiples of it.
        context_width: Width W of a context token, or 0 if the network attends to no context.
        pooled_width: Width P of the vector, or 0 if the network takes no vector.
        embed_width: Width of the CLIP embedding in the vector that an un-CLIP was trained on, else 0.
        side: Only side of a sample that fits. Default: every multiple.
    """

    channels: int
    multiple: int
    context_width: int
    pooled_width: int = 0
    embed_width: int = 0
    side: int | None = None


def network_inputs(network: Any) -> NetworkInputs:
    """Read the shapes of a network's inputs from its configuration. No weights are read.

    Raises:
        UserError: If the network needs a condition that DIVA cannot give.
    """
    config = network.config
    if isinstance(network, SD3Transformer2DModel):
        width = config.joint_attention_dim
        pooled = config.pooled_projection_dim
        return NetworkInputs(config.in_channels, config.patch_size, width, pooled)
    if isinstance(network, FluxTransformer2DModel):
        width = config.joint_attention_dim
        pooled = config.pooled_projection_dim
        return NetworkInputs(config.in_channels // FLUX_PATCH**2, FLUX_PATCH, width, pooled)
    if isinstance(network, PixArtTransformer2DModel):
        return NetworkInputs(config.in_channels, config.patch_size, config.caption_channels)
    if isinstance(network, DiTTransformer2DModel):  # the vector takes the place of the embedded class
        width = config.num_attention_heads * config.attention_head_dim
        return NetworkInputs(config.in_channels, config.patch_size, 0, width)
    if isinstance(network, MlpDenoiser):
        return NetworkInputs(config.in_channels, 1, config.cross_attention_dim, side=config.sample_size)
    # Each level but the last halves the sides, and skip connections need whole numbers.
    multiple = 2 ** (len(config.block_out_channels) - 1)
    if takes_image_embeds(network):
        width = config.encoder_hid_dim
        return NetworkInputs(config.in_channels, multiple, 0, width, width)
    return NetworkInputs(config.in_channels, multiple, _context_width(config), *_vector_widths(config))


def takes_image_embeds(network: Any) -> bool:
    """Check whether a network is Kandinsky 2.2's UNet.

    This network is conditioned on an image embedding alone.
    """
    config = network.config
    types = getattr(config, "encoder_hid_dim_type", None), getattr(config, "addition_embed_type", None)
    return types == ("image_proj", "image")


def take_vectors(network: Any) -> Any:
    """Make a DiT accept vectors in place of embedded classes, in place. Other networks are not changed."""
    if isinstance(network, DiTTransformer2DModel):
        for block in network.transformer_blocks:
            # A class is only an index into a table of vectors. A vector in its place conditions the network in the same
            # way.
            block.norm1.emb.class_embedder = nn.Identity()
    return network


def _context_width(config: Any) -> int:
    width = config.cross_attention_dim
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if len(widths) > 1:
        raise UserError(
            f"the UNet's levels attend to contexts of several widths ({', '.join(map(str, sorted(widths)))})"
        )
    return int(widths.pop())


def _vector_widths(config: Any) -> tuple[int, int]:
    """Read the width of the vector that a UNet takes, and of the image embedding in it (Stable unCLIP)."""
    for key, supported in CONDITION_TYPES.items():
        value = getattr(config, key)
        if value and value not in supported:
            raise UserError(f"the UNet needs a condition that diva does not support ({key} {value})")
    if config.class_embed_type and config.addition_embed_type:
        raise UserError("the UNet needs two vectors (class_embed_type, addition_embed_type); diva supports one")
    width = config.projection_class_embeddings_input_dim
    if config.class_embed_type:
        return int(width), int(width) // 2  # an embedding, and the code of its level of noise
    if config.addition_embed_type:
        return int(width) - 6 * config.addition_time_embed_dim, 0
    return 0, 0


def build_unet(config: UNet, *, sample_size: int, channels: int, context_width: int) -> UNet2DConditionModel:
    """Build a UNet with random weights from torch's generator.

    The first levels only convolve, and the last `attention_levels` attend. Attention at full resolution costs most, and
    a context that describes the whole image matters least there.

    Args:
        config: Levels and widths.
        sample_size: Side of a sample.
        channels: Channels of a sample.
        context_width: Width of a context token.
    """
    plain = len(config.block_out_channels) - config.attention_levels
    attending = config.attention_levels
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * attending,
        up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",) * plain,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=context_width,
        attention_head_dim=8,
        norm_num_groups=4,
    )


def build_mlp(config: Mlp, *, sample_size: int, channels: int, context_width: int) -> MlpDenoiser:
    """Build an MLP with random weights from torch's generator.

    Args:
        config: Layers and widths.
        sample_size: Side of a sample.
        channels: Channels of a sample.
        context_width: Width of a context token.
    """
    network: MlpDenoiser = MlpDenoiser(sample_size, channels, context_width, config.width, config.num_blocks)
    return network


def build_flow_transformer(
    config: FlowTransformer, *, sample_size: int, channels: int, context_width: int
) -> FluxTransformer2DModel:
    """Build a flow transformer with random weights from torch's generator.

    Args:
        config: Blocks and widths.
        sample_size: Not used, because samples may have any even side.
        channels: Channels of a sample.
        context_width: Width of a context token.
    """
    return FluxTransformer2DModel(
        patch_size=1,  # squares of latents become tokens before the network
        in_channels=channels * FLUX_PATCH**2,
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_width,
        joint_attention_dim=context_width,
        pooled_projection_dim=config.vector_width,
        guidance_embeds=False,
        axes_dims_rope=config.rotary_widths,
    )


def predict(network: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Predict from noisy samples with a network, (B, C, h, w).

    Args:
        network: Network of a class in `NETWORKS`.
        noisy: Noisy samples, (B, C, h, w).
        timesteps: Timesteps from 0 to the length of the schedule, (B,).
        conditioning: Conditioning with the widths of `network_inputs`.
    """
    if isinstance(network, SD3Transformer2DModel):
        return torch.as_tensor(network(noisy, conditioning.tokens, conditioning.pooled, timesteps).sample)
    if isinstance(network, FluxTransformer2DModel):
        return _predict_flux(network, noisy, timesteps, conditioning)
    channels = noisy.shape[1]
    if isinstance(network, PixArtTransformer2DModel):
        sizes = _pixart_sizes(network, noisy)
        predicted = network(noisy, conditioning.tokens, timesteps, added_cond_kwargs=sizes).sample
        return torch.as_tensor(predicted[:, :channels])  # the other half predicts variances
    if isinstance(network, DiTTransformer2DModel):
        return torch.as_tensor(network(noisy, timesteps, class_labels=conditioning.pooled).sample[:, :channels])
    more: dict[str, Any] = {}
    config = getattr(network, "config", None)
    if getattr(config, "class_embed_type", None):
        more["class_labels"] = conditioning.pooled
    if getattr(config, "addition_embed_type", None):
        more["added_cond_kwargs"] = {"text_embeds": conditioning.pooled, "time_ids": _sdxl_sizes(noisy)}
    context: Tensor | None = conditioning.tokens
    if config is not None and takes_image_embeds(network):
        context = None
        more = {"added_cond_kwargs": {"image_embeds": conditioning.pooled}}
    return torch.as_tensor(network(noisy, timesteps, encoder_hidden_states=context, **more).sample[:, :channels])


def _pixart_sizes(network: Any, noisy: Tensor) -> dict[str, Tensor | None]:
    """Compute the size conditions of the PixArt-alpha of 1024 pixels. Other PixArts take none."""
    if not network.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    height, width = (SDXL_DOWNSCALE * side for side in noisy.shape[2:])
    count = len(noisy)
    return {
        "resolution": noisy.new_tensor([height, width]).expand(count, 2),
        "aspect_ratio": noisy.new_tensor([height / width]).expand(count, 1),
    }


def _sdxl_sizes(noisy: Tensor) -> Tensor:
    """Compute SDXL's size conditions of uncropped images, (B, 6).

    They are the original size, the offset 0 and the target size.
    """
    height, width = (SDXL_DOWNSCALE * side for side in noisy.shape[2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=noisy.dtype)
    return sizes.to(noisy.device, non_blocking=True).expand(len(noisy), 6)


def _predict_flux(network: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Call Flux.

    It takes squares of latents as tokens, with their positions, and times from 0 to 1.
    """
    count, channels, height, width = noisy.shape
    rows = height // FLUX_PATCH
    columns = width // FLUX_PATCH
    patch = FLUX_PATCH
    squares = noisy.view(count, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    positions = torch.zeros(rows, columns, 3, device=noisy.device)
    positions[..., 1] += torch.arange(rows, device=noisy.device)[:, None]
    positions[..., 2] += torch.arange(columns, device=noisy.device)
    predicted = network(
        squares.reshape(count, rows * columns, -1),
        encoder_hidden_states=conditioning.tokens,
        pooled_projections=conditioning.pooled,
        # diffusers' Flux multiplies times by 1000 itself.
        timestep=timesteps / 1000,
        img_ids=positions.flatten(0, 1),
        txt_ids=positions.new_zeros(conditioning.tokens.shape[1], 3),
        guidance=noisy.new_full((count,), FLUX_GUIDANCE) if network.config.guidance_embeds else None,
    ).sample
    whole: Tensor = predicted.view(count, rows, columns, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return whole.reshape(noisy.shape)
