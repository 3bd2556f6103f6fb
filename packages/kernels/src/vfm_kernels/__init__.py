"""Mathematics that vfm's methods share: masks, token operations, losses and kernels for vision transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vfm_kernels.dispatch.dispatch import Kernels, not_supported_reasons, use_kernels
from vfm_kernels.layers.accelerate import Acceleration, accelerate, accelerated, subset_drop_path
from vfm_kernels.layers.add_layer_norm import add_layer_norm
from vfm_kernels.layers.padding import pad_patch_embed, pad_swiglu, padded
from vfm_kernels.layers.swiglu import swiglu_subln
from vfm_kernels.losses.contrastive import info_nce, siglip_loss, similarity_distillation
from vfm_kernels.losses.cosine import masked_cosine_loss, resultant_length, token_cosine
from vfm_kernels.losses.diffusion import (
    DiffusionKind,
    TimeDistribution,
    add_noise,
    denoising_error,
    diffusion_target,
    discrete_timesteps,
    interpolate_noise,
    sample_times,
)
from vfm_kernels.losses.gather import gather_with_grad
from vfm_kernels.multihead.attention import attention, attention_packed
from vfm_kernels.multihead.explain import explain
from vfm_kernels.tokens.drop_path import residual_of_subset
from vfm_kernels.tokens.embedding import mask_tokens
from vfm_kernels.tokens.tokens import gather_tokens, masked_index, patch_dropout_index, scatter_tokens

if TYPE_CHECKING:
    from vfm_kernels.layers.packed_rows import packed_row, positions_of_row
    from vfm_kernels.tokens.masking import block_mask, block_mask_exact, random_mask

__all__ = [
    "Acceleration",
    "DiffusionKind",
    "Kernels",
    "TimeDistribution",
    "accelerate",
    "accelerated",
    "add_layer_norm",
    "add_noise",
    "attention",
    "attention_packed",
    "block_mask",
    "block_mask_exact",
    "denoising_error",
    "diffusion_target",
    "discrete_timesteps",
    "explain",
    "gather_tokens",
    "gather_with_grad",
    "info_nce",
    "interpolate_noise",
    "mask_tokens",
    "masked_cosine_loss",
    "masked_index",
    "not_supported_reasons",
    "packed_row",
    "pad_patch_embed",
    "pad_swiglu",
    "padded",
    "patch_dropout_index",
    "positions_of_row",
    "random_mask",
    "residual_of_subset",
    "resultant_length",
    "sample_times",
    "scatter_tokens",
    "siglip_loss",
    "similarity_distillation",
    "subset_drop_path",
    "swiglu_subln",
    "token_cosine",
    "use_kernels",
]

ROWS = ("packed_row", "positions_of_row")


def __getattr__(name: str) -> Any:
    """Import on first use what needs NumPy (masks) or timm (rows)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "layers.packed_rows" if name in ROWS else "tokens.masking"
    return getattr(import_module(f"{__name__}.{module}"), name)
