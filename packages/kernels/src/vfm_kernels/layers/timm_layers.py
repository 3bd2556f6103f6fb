"""timm's layers with our ops in their forward. Parameters and checkpoints are timm's."""

from collections.abc import Iterator
from typing import Any

from timm.layers import AttentionRope, DropPath, LayerNorm, LayerNormFp32, PatchEmbed, SwiGLU
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from vfm_kernels.layers.add_layer_norm import add_layer_norm
from vfm_kernels.layers.next_norm import NextNorm, first_norm, sum_for_next
from vfm_kernels.layers.swiglu import swiglu_subln
from vfm_kernels.layers.timm_attention import (
    ATTENTIONS,
    FusedAttention,
    FusedAttentionRope,
    FusedEvaAttention,
    reason_against_attention,
)
from vfm_kernels.tokens.drop_path import residual_of_subset


class FusedSwiGLU(SwiGLU):  # type: ignore[misc]
    """SwiGLU and its norm in one pass, over the norm's width. The linear layers may be wider (`pad_swiglu`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same as timm's layer."""
        norm = self.norm
        hidden = swiglu_subln(self.fc1_g(x), self.fc1_x(x), norm.weight, norm.bias, norm.eps)
        result: Tensor = self.drop2(self.fc2(hidden))
        return result


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


def sum_and_norm(
    x: Tensor, branch: Tensor, norm: Any, layer_scale: Tensor | None, drop_path: nn.Module
) -> tuple[Tensor, Tensor]:
    """Call `add_layer_norm` with a block's modules.

    Args:
        x: Residual stream, (B, N, D).
        branch: Output of the attention or the MLP, (B, N, D).
        norm: Layer norm that follows the sum.
        layer_scale: Factor per channel, (D,).
        drop_path: The block's drop path. It draws the same numbers as in timm.

    Returns:
        The sum and its norm, (B, N, D) each.
    """
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
    """Return the first norm of a block, which the block before it computes.

    Returns:
        The norm, or None if the block is not fused.
    """
    is_fused = type(block) in (FusedEvaBlock, FusedBlock) and is_layer_norm(block.norm1)
    return block.norm1 if is_fused else None


def reason_against(module: Any, model: nn.Module) -> str | None:
    """Explain why a layer of a known class keeps its forward.

    Args:
        module: Layer of timm.
        model: Model that has the layer.

    Returns:
        The reason, or None if the layer can be replaced.
    """
    if isinstance(module, SwiGLU):
        if not is_layer_norm(module.norm):
            return "it has no layer norm"
        if module.drop1.p > 0 or not isinstance(module.act, nn.SiLU):
            return "it has dropout before the norm, or another activation"
    elif isinstance(module, ATTENTIONS):
        return reason_against_attention(module, model)
    elif not is_layer_norm(module.norm2):
        return f"its second norm is {type(module.norm2).__name__}"
    return None


def width_of(layer: Any) -> int:
    """Return the width by which a layer's op is found in the measurements.

    It is the width of a head for attention, and of the norm for other layers.
    """
    if isinstance(layer, SwiGLU):
        return len(layer.norm.weight)
    width: int = layer.head_dim if isinstance(layer, ATTENTIONS) else len(layer.norm2.weight)
    return width


def patch_projections(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield the names and layers of convolutions over adjacent patches.

    These convolutions are matrix products.
    """
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
    AttentionRope: (FusedAttentionRope, "attention"),
    EvaBlock: (FusedEvaBlock, "add_layer_norm"),
    Block: (FusedBlock, "add_layer_norm"),
}
