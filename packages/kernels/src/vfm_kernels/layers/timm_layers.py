"""timm's layers with our ops in their forward. Parameters and checkpoints are timm's."""

# B batch, N tokens, H heads, D width of a head

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, LayerNormFp32, PatchEmbed, SwiGLU
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from vfm_kernels.layers.add_layer_norm import add_layer_norm
from vfm_kernels.layers.next_norm import NextNorm, first_norm, sum_for_next
from vfm_kernels.layers.swiglu import swiglu_subln
from vfm_kernels.multihead.attention import attention, attention_packed
from vfm_kernels.multihead.backends import HALF, WIDEST
from vfm_kernels.tokens.drop_path import residual_of_subset


class FusedSwiGLU(SwiGLU):  # type: ignore[misc]
    """SwiGLU and its norm in one pass, over the norm's width. The linear layers may be wider (`pad_swiglu`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same as timm's layer."""
        norm = self.norm
        hidden = swiglu_subln(self.fc1_g(x), self.fc1_x(x), norm.weight, norm.bias, norm.eps)
        result: Tensor = self.drop2(self.fc2(hidden))
        return result


class FusedEvaAttention(EvaAttention):  # type: ignore[misc]
    """Attention and rotary positions in one pass over the heads, which are read where the linear layers wrote them."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Compute the same as timm's layer."""
        if not is_plain(self, attn_mask):
            return super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]
        pattern: dict[str, Any] = {"causal": is_causal, "visible": attn_mask}
        if rope is not None:
            # (N, 2 D), or (B, 1, N, 2 D) with patch dropout; timm repeats each angle for both channels of a pair.
            table = rope if rope.ndim == 2 else rope.squeeze(1)
            sin, cos = (half[..., ::2] for half in table.chunk(2, dim=-1))
            pattern |= {"sin": sin, "cos": cos, "num_prefix_tokens": self.num_prefix_tokens}
        batch, num_tokens, _ = x.shape
        # EVA's keys have no bias, which timm stores as a buffer of zeros.
        if self.qkv is not None:
            bias = None if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
            packed = F.linear(x, self.qkv.weight, bias).view(batch, num_tokens, 3, self.num_heads, -1)
            mixed = attention_packed(packed, backend=backend_of(packed, attn_mask), **pattern)
        else:
            heads = (batch, num_tokens, self.num_heads, -1)
            q, k, v = (layer(x).view(heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
            mixed = attention(q, k, v, backend=backend_of(q, attn_mask), **pattern)
        return projected(self, x, mixed)


class FusedAttention(Attention):  # type: ignore[misc]
    """Attention in one pass over the heads, which are read where the linear layer wrote them."""

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


class FusedEvaBlock(EvaBlock):  # type: ignore[misc]
    """timm's `EvaBlock` with each residual sum and the norm that follows it in one pass."""

    following: NextNorm | None = None

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Compute the same as timm's layer."""
        branch = self.attn(first_norm(self.norm1, x), rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        x, normed = sum_and_norm(x, branch, self.norm2, self.gamma_1, self.drop_path1)
        branch = self.mlp(normed)
        return sum_for_next(
            self.following,
            lambda: x + self.drop_path2(branch if self.gamma_2 is None else self.gamma_2 * branch),
            lambda norm: sum_and_norm(x, branch, norm, self.gamma_2, self.drop_path2),
        )


class FusedBlock(Block):  # type: ignore[misc]
    """timm's `Block` with each residual sum and the norm that follows it in one pass."""

    following: NextNorm | None = None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute the same as timm's layer."""
        branch = self.attn(first_norm(self.norm1, x), attn_mask=attn_mask, is_causal=is_causal)
        x, normed = sum_and_norm(x, branch, self.norm2, getattr(self.ls1, "gamma", None), self.drop_path1)
        branch = self.mlp(normed)
        return sum_for_next(
            self.following,
            lambda: x + self.drop_path2(self.ls2(branch)),
            lambda norm: sum_and_norm(x, branch, norm, getattr(self.ls2, "gamma", None), self.drop_path2),
        )


class SubsetEvaBlock(EvaBlock):  # type: ignore[misc]
    """timm's `EvaBlock` that drops paths in training by running branches on a subset of the batch."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Compute the same as timm's block, except for the choice of samples that drop a branch."""
        if not self.training:
            return super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]

        def attend(subset: Tensor, index: Tensor) -> Tensor:
            selected = {"rope": _of(rope, index, len(x)), "attn_mask": _of(attn_mask, index, len(x))}
            branch: Tensor = self.attn(self.norm1(subset), is_causal=is_causal, **selected)
            return branch if self.gamma_1 is None else self.gamma_1 * branch

        def mlp(subset: Tensor, _: Tensor) -> Tensor:
            branch: Tensor = self.mlp(self.norm2(subset))
            return branch if self.gamma_2 is None else self.gamma_2 * branch

        x = residual_of_subset(x, attend, self.drop_path1.drop_prob)
        return residual_of_subset(x, mlp, self.drop_path2.drop_prob)


class SubsetBlock(Block):  # type: ignore[misc]
    """timm's `Block` that drops paths in training by running branches on a subset of the batch."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute the same as timm's block, except for the choice of samples that drop a branch."""
        if not self.training:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)  # type: ignore[no-any-return]

        def attend(subset: Tensor, index: Tensor) -> Tensor:
            selected_mask = _of(attn_mask, index, len(x))
            branch: Tensor = self.ls1(self.attn(self.norm1(subset), attn_mask=selected_mask, is_causal=is_causal))
            return branch

        def mlp(subset: Tensor, _: Tensor) -> Tensor:
            branch: Tensor = self.ls2(self.mlp(self.norm2(subset)))
            return branch

        x = residual_of_subset(x, attend, self.drop_path1.drop_prob)
        return residual_of_subset(x, mlp, self.drop_path2.drop_prob)


SUBSET: dict[type[nn.Module], type[nn.Module]] = {EvaBlock: SubsetEvaBlock, Block: SubsetBlock}


def _of(tensor: Tensor | None, index: Tensor, batch: int) -> Tensor | None:
    """Select the angles or masks of some samples. A tensor that all samples share is returned unchanged."""
    if tensor is None or tensor.ndim != 4 or len(tensor) != batch:
        return tensor
    return tensor[index]


def is_plain(layer: Any, attn_mask: Tensor | None) -> bool:
    """Check whether our ops support this call of an attention: no mask except booleans, and no dropout."""
    masked = attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.ndim != 4)
    return not masked and layer.fused_attn and not (layer.training and layer.attn_drop.p > 0)


def backend_of(heads: Tensor, visible: Tensor | None = None) -> str | None:
    """Choose torch's backend where our kernels cannot run (fp32 on a GPU, or a boolean mask); None elsewhere."""
    on_gpu = heads.device.type == "cuda"
    if visible is not None:
        return "sdpa_efficient" if on_gpu else "sdpa"
    return "sdpa_efficient" if on_gpu and heads.dtype not in HALF else None


def projected(layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """Apply the rest of an attention of `x` to its mixed heads (B, N, H, D): norm, gate, linear layer, dropout."""
    mixed = layer.norm(mixed.flatten(2))
    if layer.gate is not None:
        mixed = mixed * layer.gate(x).sigmoid()
    result: Tensor = layer.proj_drop(layer.proj(mixed))
    return result


def sum_and_norm(
    x: Tensor, branch: Tensor, norm: Any, layer_scale: Tensor | None, drop_path: nn.Module
) -> tuple[Tensor, Tensor]:
    """Call `add_layer_norm` with a block's modules. Drop path draws the same numbers as timm's."""
    drop_scale = None
    if isinstance(drop_path, DropPath) and drop_path.training and drop_path.drop_prob > 0:
        keep = 1 - drop_path.drop_prob
        # Drawn in the shape that timm's `drop_path` uses, so that the generator gives the same samples.
        drop_scale = branch.new_empty((len(branch), *[1] * (branch.ndim - 1))).bernoulli_(keep).flatten()
        if drop_path.scale_by_keep and keep > 0:
            drop_scale = drop_scale / keep
    return add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps, layer_scale=layer_scale, drop_scale=drop_scale)


def is_layer_norm(norm: Any) -> bool:
    """Check whether a norm is a layer norm with weight and bias over the last dimension."""
    is_layer_norm_class = type(norm) in (nn.LayerNorm, LayerNorm, LayerNormFp32)
    return is_layer_norm_class and isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)


def following_norm(block: Any) -> Any:
    """Return the first norm of a fused block, for the block before it; None if the block is not fused."""
    is_fused = type(block) in (FusedEvaBlock, FusedBlock) and is_layer_norm(block.norm1)
    return block.norm1 if is_fused else None


def known_attentions(model: nn.Module) -> set[nn.Module]:
    """Collect the attentions whose `Eva` passes no angles, or angles that all heads share."""
    attentions: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Eva) and not getattr(module, "rope_mixed", False):
            blocks: Any = module.blocks
            attentions.update(block.attn for block in blocks)
    return attentions


def reason_against(module: Any, model: nn.Module) -> str | None:
    """Explain why a layer of a known class keeps its forward in this model; None if it can be replaced."""
    if isinstance(module, SwiGLU):
        if not is_layer_norm(module.norm):
            return "it has no layer norm"
        if module.drop1.p > 0 or not isinstance(module.act, nn.SiLU):
            return "it has dropout before the norm, or another activation"
    elif isinstance(module, (Attention, EvaAttention)):
        return _reason_against_attention(module, model)
    elif not is_layer_norm(module.norm2):
        return f"its second norm is {type(module.norm2).__name__}"
    return None


def _reason_against_attention(module: Any, model: nn.Module) -> str | None:
    if not module.fused_attn:
        return "its fused attention is switched off"
    if module.head_dim % 8 or module.head_dim > WIDEST:
        return f"its heads are {module.head_dim} wide; the width must be a multiple of 8, at most {WIDEST}"
    if isinstance(module, EvaAttention):
        if module not in known_attentions(model):
            return "its model has rotary positions for each head, or is not a known class"
        if module.rotate_half or module.qkv_bias_separate or not isinstance(module.q_norm, nn.Identity):
            return "it rotates halves, adds the bias separately, or normalises queries"
    return None


def width_of(layer: Any) -> int:
    """Return the width that identifies a layer's op in the measurements: the width of a head or of the norm."""
    if isinstance(layer, SwiGLU):
        return len(layer.norm.weight)
    width: int = layer.head_dim if isinstance(layer, Attention | EvaAttention) else len(layer.norm2.weight)
    return width


def patch_projections(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield the names and layers of convolutions over adjacent patches, which are matrix products."""
    for name, layer in model.named_modules():
        if isinstance(layer, PatchEmbed) and is_of_patches(layer.proj):
            yield f"{name}.proj" if name else "proj", layer.proj


def is_of_patches(convolution: Any) -> bool:
    """Check whether a layer is a plain convolution of adjacent patches."""
    plain = type(convolution) is nn.Conv2d and convolution.groups == 1 and not any(convolution.padding)
    return plain and convolution.kernel_size == convolution.stride


FUSED: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    SwiGLU: (FusedSwiGLU, "swiglu_subln"),
    Attention: (FusedAttention, "attention"),
    EvaAttention: (FusedEvaAttention, "attention"),
    EvaBlock: (FusedEvaBlock, "add_layer_norm"),
    Block: (FusedBlock, "add_layer_norm"),
}
