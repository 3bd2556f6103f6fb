"""timm's layers with our ops in their forward: what they hold, and what their checkpoints hold, is timm's."""

# B batch, N tokens, H heads, D width of a head

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, LayerNormFp32, SwiGLU
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vfm_kernels.add_layer_norm import add_layer_norm
from vfm_kernels.drop_path import residual_of_subset
from vfm_kernels.rope import rope_2d
from vfm_kernels.swiglu import swiglu_subln


class FusedSwiGLU(SwiGLU):  # type: ignore[misc]
    """SwiGLU and its norm in one pass, over the norm's width; the linear layers may be wider (`pad_swiglu`)."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        hidden = swiglu_subln(self.fc1_g(x), self.fc1_x(x), norm.weight, norm.bias, norm.eps)
        projected: Tensor = self.drop2(self.fc2(hidden))
        return projected


class FusedEvaAttention(EvaAttention):  # type: ignore[misc]
    """Queries and keys are rotated where the linear layer wrote them."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        if rope is None:
            return super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]
        # (N, 2 D), or (B, 1, N, 2 D) where patches were dropped; timm repeats each angle for both of a pair.
        sin, cos = (half[..., ::2] for half in (rope if rope.ndim == 2 else rope.squeeze(1)).chunk(2, dim=-1))
        turn = {"sin": sin, "cos": cos, "num_prefix_tokens": self.num_prefix_tokens}
        batch, num_tokens, _ = x.shape
        gate = None if self.gate is None else self.gate(x).sigmoid()
        if self.qkv is not None:
            bias = None if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
            packed = F.linear(x, self.qkv.weight, bias).view(batch, num_tokens, 3 * self.num_heads, -1)
            packed = rope_2d(packed, num_rotated=2 * self.num_heads, **turn)
            q, k, v = (
                packed.view(batch, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            )  # (B, H, N, D)
        else:
            heads = (batch, num_tokens, self.num_heads, -1)
            q, k = (rope_2d(layer(x).view(heads), **turn).transpose(1, 2) for layer in (self.q_proj, self.k_proj))
            v = self.v_proj(x).view(heads).transpose(1, 2)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        x = self.norm(x.transpose(1, 2).reshape(batch, num_tokens, -1))
        projected: Tensor = self.proj_drop(self.proj(x if gate is None else x * gate))
        return projected


class FusedEvaBlock(EvaBlock):  # type: ignore[misc]
    """The attention's residual sum and the second norm in one pass."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        branch = self.attn(self.norm1(x), rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        x, normed = sum_and_norm(x, branch, self.norm2, self.gamma_1, self.drop_path1)
        branch = self.mlp(normed)
        summed: Tensor = x + self.drop_path2(branch if self.gamma_2 is None else self.gamma_2 * branch)
        return summed


class FusedBlock(Block):  # type: ignore[misc]
    """The attention's residual sum and the second norm in one pass."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        branch = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x, normed = sum_and_norm(x, branch, self.norm2, getattr(self.ls1, "gamma", None), self.drop_path1)
        summed: Tensor = x + self.drop_path2(self.ls2(self.mlp(normed)))
        return summed


class SubsetEvaBlock(EvaBlock):  # type: ignore[misc]
    """Drop path by part of the batch, in training."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        if not self.training:
            return super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]

        def attention(kept: Tensor, index: Tensor) -> Tensor:
            of_kept = {"rope": _of(rope, index, len(x)), "attn_mask": _of(attn_mask, index, len(x))}
            branch: Tensor = self.attn(self.norm1(kept), is_causal=is_causal, **of_kept)
            return branch if self.gamma_1 is None else self.gamma_1 * branch

        def mlp(kept: Tensor, _: Tensor) -> Tensor:
            branch: Tensor = self.mlp(self.norm2(kept))
            return branch if self.gamma_2 is None else self.gamma_2 * branch

        x = residual_of_subset(x, attention, self.drop_path1.drop_prob)
        return residual_of_subset(x, mlp, self.drop_path2.drop_prob)


class SubsetBlock(Block):  # type: ignore[misc]
    """Drop path by part of the batch, in training."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if not self.training:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]

        def attention(kept: Tensor, index: Tensor) -> Tensor:
            of_kept = _of(attn_mask, index, len(x))
            branch: Tensor = self.ls1(self.attn(self.norm1(kept), attn_mask=of_kept, is_causal=is_causal))
            return branch

        x = residual_of_subset(x, attention, self.drop_path1.drop_prob)
        return residual_of_subset(x, lambda kept, _: self.ls2(self.mlp(self.norm2(kept))), self.drop_path2.drop_prob)


SUBSET: dict[type[nn.Module], type[nn.Module]] = {EvaBlock: SubsetEvaBlock, Block: SubsetBlock}


def _of(tensor: Tensor | None, index: Tensor, batch: int) -> Tensor | None:
    """Angles or masks of some samples, where they have a sample's dimension at all."""
    return tensor[index] if tensor is not None and tensor.ndim == 4 and len(tensor) == batch else tensor


def sum_and_norm(
    x: Tensor, branch: Tensor, norm: Any, layer_scale: Tensor | None, drop_path: nn.Module
) -> tuple[Tensor, Tensor]:
    """`add_layer_norm` of a block's modules; drop path draws what timm's would have drawn."""
    drop_scale = None
    if isinstance(drop_path, DropPath) and drop_path.training and drop_path.drop_prob > 0:
        keep = 1 - drop_path.drop_prob
        drop_scale = branch.new_empty((len(branch), *[1] * (branch.ndim - 1))).bernoulli_(keep).flatten()
        if drop_path.scale_by_keep and keep > 0:
            drop_scale = drop_scale / keep
    return add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps, layer_scale=layer_scale, drop_scale=drop_scale)


def is_layer_norm(norm: Any) -> bool:
    """Whether a norm is a layer norm with weight and bias, over the last dimension."""
    known = type(norm) in (nn.LayerNorm, LayerNorm, LayerNormFp32)
    return known and isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)


def rotated(model: nn.Module) -> set[nn.Module]:
    """Attentions whose `Eva` gives them angles that all heads share."""
    owners: list[Any] = [module for module in model.modules() if isinstance(module, Eva)]
    owners = [owner for owner in owners if owner.rope is not None and not getattr(owner, "rope_mixed", False)]
    return {block.attn for owner in owners for block in owner.blocks}


def reason_against(module: Any, model: nn.Module) -> str | None:
    """Why a layer of a known class keeps its forward in this model; None if it need not."""
    if isinstance(module, SwiGLU):
        if not is_layer_norm(module.norm):
            return "it has no layer norm"
        if module.drop1.p > 0 or not isinstance(module.act, nn.SiLU):
            return "it has dropout before the norm, or another activation"
    elif isinstance(module, EvaAttention):
        if module not in rotated(model):
            return "its model gives it no rotary positions, or some for each head"
        if module.rotate_half or module.qkv_bias_separate or not isinstance(module.q_norm, nn.Identity):
            return "it rotates halves, adds the bias apart, or normalises queries"
        if not module.fused_attn:
            return "its fused attention is switched off"
    elif not is_layer_norm(module.norm2):
        return f"its second norm is {type(module.norm2).__name__}"
    return None


FUSED: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    SwiGLU: (FusedSwiGLU, "swiglu_subln"),
    EvaAttention: (FusedEvaAttention, "rope_2d"),
    EvaBlock: (FusedEvaBlock, "add_layer_norm"),
    Block: (FusedBlock, "add_layer_norm"),
}
