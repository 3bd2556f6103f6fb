"""timm's attentions with our op in their forward. Parameters and checkpoints are timm's."""

# B batch, N tokens, H heads, D width of a head, C channels of the layer's input

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from vfm_kernels.multihead.attention import attention, attention_packed
from vfm_kernels.multihead.backends import HALF, WIDEST

ATTENTIONS = (Attention, EvaAttention, AttentionRope)


class _Rotary:
    """The forward of an attention with rotary positions, before timm's in the order of classes."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Compute the same as timm's layer."""
        if not is_plain(self, attn_mask):
            timm: Any = super()
            return timm.forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]
        return rotary_attention(self, x, rope, attn_mask, is_causal)


class FusedEvaAttention(_Rotary, EvaAttention):  # type: ignore[misc]
    """Attention and rotary positions in one pass over the heads.

    The heads are read where the linear layers wrote them, without a copy.
    """


class FusedAttentionRope(_Rotary, AttentionRope):  # type: ignore[misc]
    """Attention and rotary positions in one pass, for timm's `AttentionRope`.

    RoPE-ViT and Perception Encoders have this layer.
    """


class FusedAttention(Attention):  # type: ignore[misc]
    """Attention in one pass over the heads.

    The heads are read where the linear layer wrote them, without a copy.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute the same as timm's layer."""
        if not is_plain(self, attn_mask):
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]
        batch, num_tokens, _ = x.shape
        packed = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, self.head_dim)
        kind: dict[str, Any] = {"causal": is_causal, "visible": attn_mask, "backend": backend_of(packed, attn_mask)}
        if isinstance(self.q_norm, nn.Identity):
            return projected(self, x, attention_packed(packed, **kind))
        q, k, v = packed.unbind(2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # under autocast a norm may return fp32
        return projected(self, x, attention(q, k, v, **kind))


def rotary_attention(
    layer: Any,
    x: Tensor,
    rope: Tensor | None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    row: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Compute an attention of `x`, (B, N, C), with rotary positions and norms of queries and keys if it has them.

    Args:
        layer: timm's attention.
        x: Tokens.
        rope: timm's rotary positions.
        attn_mask: Booleans, True where a query sees a key.
        is_causal: A token sees only itself and earlier tokens.
        row: Boundaries and longest length of the sequences in a batch of 1. `rope` then has a row for every token.
    """
    pattern: dict[str, Any] = {"causal": is_causal, "visible": attn_mask}
    num_prefix_tokens = getattr(layer, "num_prefix_tokens", 0)
    if row is not None:
        pattern["cu_seqlens"], pattern["max_seqlen"] = row
        num_prefix_tokens = 0  # they have rows that rotate nothing
    # Angles of each head are learned, as in RoPE-ViT's mixed ones. The kernel has no gradient of angles.
    outside = rope is not None and (rope.ndim == 3 or (rope.ndim == 4 and rope.shape[1] > 1) or rope.requires_grad)
    if rope is not None and not outside:
        pattern |= _tables(layer, rope) | {"num_prefix_tokens": num_prefix_tokens}
        if row is not None:
            pattern["positions"] = torch.arange(x.shape[1], device=x.device)[None]
    is_normed = not isinstance(layer.q_norm, nn.Identity)
    halves = rope is not None and layer.rotate_half and not outside
    if layer.qkv is not None and not is_normed and not outside:
        packed = _packed(layer, x, halves=halves)
        mixed = attention_packed(packed, backend=backend_of(packed, attn_mask), **pattern)
        return projected(layer, x, mixed)
    q, k, v = _queries_keys_values(layer, x)
    if is_normed:
        q, k = layer.q_norm(q).to(v.dtype), layer.k_norm(k).to(v.dtype)  # under autocast a norm may return fp32
    if outside:
        q = _rotated(layer, q, rope, num_prefix_tokens)
        k = _rotated(layer, k, rope, num_prefix_tokens)
    elif halves:
        q, k = _interleaved(q, -1), _interleaved(k, -1)
    return projected(layer, x, attention(q, k, v, backend=backend_of(q, attn_mask), **pattern))


def _tables(layer: Any, rope: Tensor) -> dict[str, Any]:
    """Read sine and cosine of a token's angles, (N, D / 2) or (B, N, D / 2), from timm's positions."""
    table = rope if rope.ndim == 2 else rope.squeeze(1)  # (N, 2 D), or (B, 1, N, 2 D) with patch dropout
    sin, cos = table.chunk(2, dim=-1)
    # timm repeats each angle for both channels of a pair: side by side, or a half of the head apart.
    if layer.rotate_half:
        pairs = sin.shape[-1] // 2
        sin = sin[..., :pairs]
        cos = cos[..., :pairs]
    else:
        sin = sin[..., ::2]
        cos = cos[..., ::2]
    return {"sin": sin, "cos": cos}


def _packed(layer: Any, x: Tensor, *, halves: bool) -> Tensor:
    """Compute queries, keys and values in one tensor, (B, N, 3, H, D)."""
    weight, bias = layer.qkv.weight, _bias(layer)
    if halves:
        # The scores are the same if the channels of queries and keys change places together. So the rows of the
        # weights are put where the kernel rotates neighbours, which is cheaper than to move queries and keys.
        weight = _interleaved_rows(weight, layer.num_heads)
        bias = None if bias is None else _interleaved_rows(bias, layer.num_heads)
    return F.linear(x, weight, bias).view(*x.shape[:2], 3, layer.num_heads, -1)


def _queries_keys_values(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries, keys and values, (B, N, H, D) each."""
    if layer.qkv is not None:
        q, k, v = _packed(layer, x, halves=False).unbind(2)
    else:
        heads = (*x.shape[:2], layer.num_heads, -1)
        q = layer.q_proj(x).view(heads)
        k = layer.k_proj(x).view(heads)
        v = layer.v_proj(x).view(heads)
    return q, k, v


def _bias(layer: Any) -> Tensor | None:
    """Collect the bias of the packed linear layer.

    EVA's keys have none. timm stores a buffer of zeros for them.
    """
    if getattr(layer, "q_bias", None) is not None:
        return torch.cat((layer.q_bias, layer.k_bias, layer.v_bias))
    bias: Tensor | None = layer.qkv.bias
    return bias


def _interleaved_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Interleave the halves of each head's queries and keys in a packed weight, (3 H D, C), or bias, (3 H D,)."""
    heads = weight.reshape(3, num_heads, -1, *weight.shape[1:])
    return torch.cat([_interleaved(heads[:2], 2), heads[2:]]).flatten(0, 2)


def _interleaved(heads: Tensor, dim: int) -> Tensor:
    """Put the channels i and i + D / 2 of heads side by side, along the dimension of their D channels."""
    dim %= heads.ndim
    halves = heads.reshape(*heads.shape[:dim], 2, -1, *heads.shape[dim + 1 :])
    return halves.transpose(dim, dim + 1).flatten(dim, dim + 1)


def _rotated(layer: Any, heads: Tensor, rope: Any, num_prefix_tokens: int) -> Tensor:
    """Rotate heads, (B, N, H, D), by angles of each head, with their gradient."""
    tokens = heads.transpose(1, 2)  # (B, H, N, D)
    prefix, patches = tokens[:, :, :num_prefix_tokens], tokens[:, :, num_prefix_tokens:]
    rotated = apply_rot_embed_cat(patches, rope, half=layer.rotate_half)
    return torch.cat([prefix, rotated], dim=2).to(heads.dtype).transpose(1, 2)


def is_plain(layer: Any, attn_mask: Tensor | None) -> bool:
    """Check whether our ops support this call of an attention layer.

    They support boolean masks, and no dropout.
    """
    masked = attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.ndim != 4)
    return not masked and layer.fused_attn and not (layer.training and layer.attn_drop.p > 0)


def backend_of(heads: Tensor, visible: Tensor | None = None) -> str | None:
    """Choose torch's backend where our kernels cannot run (fp32 on a GPU, or a boolean mask); None elsewhere."""
    on_gpu = heads.device.type == "cuda"
    if visible is not None:
        return "sdpa_efficient" if on_gpu else "sdpa"
    return "sdpa_efficient" if on_gpu and heads.dtype not in HALF else None


def projected(layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """Apply the layers of an attention that follow the mixing of heads.

    These are the norm, the gate, the linear layer and dropout.

    Args:
        layer: Attention layer of timm.
        x: Input of the layer, (B, N, E).
        mixed: Output of the attention, (B, N, H, D).
    """
    mixed = layer.norm(mixed.flatten(2))
    if layer.gate is not None:
        mixed = mixed * layer.gate(x).sigmoid()
    result: Tensor = layer.proj_drop(layer.proj(mixed))
    return result


def known_attentions(model: nn.Module) -> set[nn.Module]:
    """Collect the attentions of `Eva`, whose positions have known shapes."""
    attentions: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Eva):
            blocks: Any = module.blocks
            attentions.update(block.attn for block in blocks)
    return attentions


def reason_against_attention(module: Any, model: nn.Module) -> str | None:
    """Explain why an attention layer of a known class keeps its forward.

    Args:
        module: Attention layer of timm.
        model: Model that has the layer.

    Returns:
        The reason, or None if the layer can be replaced.
    """
    if not module.fused_attn:
        return "its fused attention is switched off"
    if module.head_dim % 8 or module.head_dim > WIDEST:
        return f"its heads are {module.head_dim} wide; the width must be a multiple of 8, at most {WIDEST}"
    if isinstance(module, (EvaAttention, AttentionRope)) and module not in known_attentions(model):
        return "its model is not a known class"
    if getattr(module, "num_kv_groups", 1) > 1:
        return f"{module.num_kv_groups} of its heads share keys and values"
    return None
