"""open_clip's blocks with our ops in their forward. Parameters and checkpoints are open_clip's."""

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    LayerNorm,
    LayerNormFp32,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from vfm_kernels.layers.add_layer_norm import add_layer_norm
from vfm_kernels.layers.next_norm import NextNorm, first_norm, sum_for_next
from vfm_kernels.layers.timm_attention import backend_of
from vfm_kernels.layers.timm_layers import is_of_patches
from vfm_kernels.multihead.attention import attention_packed
from vfm_kernels.multihead.backends import WIDEST

NORMS = (nn.LayerNorm, LayerNorm, LayerNormFp32)


class FusedResidualAttentionBlock(ResidualAttentionBlock):  # type: ignore[misc]
    """open_clip's block with each residual sum and the norm that follows it in one pass."""

    following: NextNorm | None = None

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the same as open_clip's layer."""
        if hasattr(self, "ln_1_kv"):
            k_x = None if k_x is None else self.ln_1_kv(k_x)
            v_x = None if v_x is None else self.ln_1_kv(v_x)
        else:
            k_x, v_x = None, None  # as in open_clip, which ignores them without a norm of their own
        branch = self.attention(q_x=first_norm(self.ln_1, q_x), k_x=k_x, v_x=v_x, attn_mask=attn_mask)
        return _rest(self, q_x, branch)


class FusedCustomResidualAttentionBlock(CustomResidualAttentionBlock):  # type: ignore[misc]
    """open_clip's custom block with each residual sum and the norm that follows it in one pass."""

    following: NextNorm | None = None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Compute the same as open_clip's layer."""
        return _rest(self, x, self.ln_attn(self.attn(first_norm(self.ln_1, x), attn_mask=attn_mask)))


class FusedMultiheadAttention(nn.MultiheadAttention):
    """Self-attention in one pass over the heads, without copying them, for calls as in open_clip's image towers."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the same as torch's layer. Calls with a mask, as in text towers, run torch's code."""
        # open_clip passes everything by name, so positional arguments come from a caller that we do not know.
        plain = not args and not kwargs.get("need_weights", True) and not self._masked(kwargs)
        if not (plain and query is key and key is value and not (self.training and self.dropout > 0)):
            return super().forward(query, key, value, *args, **kwargs)
        batch, num_tokens, _ = query.shape
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        packed = qkv.view(batch, num_tokens, 3, self.num_heads, self.head_dim)
        mixed = attention_packed(packed, backend=backend_of(packed))
        return self.out_proj(mixed.flatten(2)), None

    @staticmethod
    def _masked(kwargs: dict[str, Any]) -> bool:
        has_mask = any(kwargs.get(name) is not None for name in ("attn_mask", "key_padding_mask"))
        return has_mask or bool(kwargs.get("is_causal"))


def _rest(block: Any, x: Tensor, branch: Tensor) -> Tensor:
    """Apply the rest of a block to its input and the output of its attention."""

    def sum_and_norm(x: Tensor, branch: Tensor, norm: Any, layer_scale: nn.Module) -> tuple[Tensor, Tensor]:
        gamma = getattr(layer_scale, "gamma", None)
        return add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps, layer_scale=gamma)

    x, normed = sum_and_norm(x, branch, block.ln_2, block.ls_1)
    branch = block.mlp(normed)
    return sum_for_next(
        block.following, lambda: x + block.ls_2(branch), lambda norm: sum_and_norm(x, branch, norm, block.ls_2)
    )


def following_norm(block: Any) -> Any:
    """Return the first norm of a block, which the block before it computes.

    Returns:
        The norm, or None if the block is not fused.
    """
    fused = type(block) in (FusedResidualAttentionBlock, FusedCustomResidualAttentionBlock)
    if fused and type(block.ln_1) in NORMS:
        return block.ln_1
    return None


def reason_against(block: Any, model: nn.Module) -> str | None:
    """Explain why a layer of a known class keeps its forward.

    Args:
        block: Layer of open_clip.
        model: Model that has the layer.

    Returns:
        The reason, or None if the layer can be replaced.
    """
    if isinstance(block, nn.MultiheadAttention):
        return _reason_against_attention(block)
    if type(block.ln_2) not in NORMS:
        return f"its second norm is {type(block.ln_2).__name__}"
    return None


def _reason_against_attention(layer: nn.MultiheadAttention) -> str | None:
    if layer.head_dim % 8 or layer.head_dim > WIDEST:
        return f"its heads are {layer.head_dim} wide; the width must be a multiple of 8, at most {WIDEST}"
    if not layer.batch_first or layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        return "its layout is not that of open_clip's image towers"
    return None


def width_of(block: Any) -> int:
    """Return the width by which a layer's op is found in the measurements.

    It is the width of a head for attention, and of the norm for other layers.
    """
    if isinstance(block, nn.MultiheadAttention):
        return int(block.head_dim)
    return len(block.ln_2.weight)


def patch_projections(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield the names and layers of convolutions over adjacent patches.

    These convolutions are matrix products.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, VisionTransformer) and is_of_patches(layer.conv1):
            yield f"{name}.conv1" if name else "conv1", layer.conv1


FUSED: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    ResidualAttentionBlock: (FusedResidualAttentionBlock, "add_layer_norm"),
    CustomResidualAttentionBlock: (FusedCustomResidualAttentionBlock, "add_layer_norm"),
    nn.MultiheadAttention: (FusedMultiheadAttention, "attention"),
}
