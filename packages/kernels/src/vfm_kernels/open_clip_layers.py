"""open_clip's blocks with our ops in their forward; parameters and checkpoints are those of open_clip."""

from collections.abc import Iterator
from typing import Any

from open_clip.transformer import (
    CustomResidualAttentionBlock,
    LayerNorm,
    LayerNormFp32,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from vfm_kernels.add_layer_norm import add_layer_norm
from vfm_kernels.timm_layers import is_of_patches


class FusedResidualAttentionBlock(ResidualAttentionBlock):  # type: ignore[misc]
    """The attention's residual sum and the second norm in one pass."""

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the same as open_clip's layer."""
        if hasattr(self, "ln_1_kv"):
            k_x = None if k_x is None else self.ln_1_kv(k_x)
            v_x = None if v_x is None else self.ln_1_kv(v_x)
        else:
            k_x, v_x = None, None  # as in open_clip, which ignores them without a norm of their own
        branch = self.attention(q_x=self.ln_1(q_x), k_x=k_x, v_x=v_x, attn_mask=attn_mask)
        return _rest(self, q_x, branch)


class FusedCustomResidualAttentionBlock(CustomResidualAttentionBlock):  # type: ignore[misc]
    """The attention's residual sum and the second norm in one pass."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Compute the same as open_clip's layer."""
        return _rest(self, x, self.ln_attn(self.attn(self.ln_1(x), attn_mask=attn_mask)))


def _rest(block: Any, x: Tensor, branch: Tensor) -> Tensor:
    """Apply the rest of a block to its input and the output of its attention."""
    norm, layer_scale = block.ln_2, getattr(block.ls_1, "gamma", None)
    x, normed = add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps, layer_scale=layer_scale)
    result: Tensor = x + block.ls_2(block.mlp(normed))
    return result


def reason_against(block: Any, model: nn.Module) -> str | None:
    """Return why a block of a known class keeps its forward in this model; None if it can be replaced."""
    if type(block.ln_2) not in (nn.LayerNorm, LayerNorm, LayerNormFp32):
        return f"its second norm is {type(block.ln_2).__name__}"
    return None


def width_of(block: Any) -> int:
    """Return the width by which the measurements of a block's op are known."""
    return len(block.ln_2.weight)


def patch_projections(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Yield the convolutions of patches that do not overlap, which are matrix products, with their names."""
    for name, layer in model.named_modules():
        if isinstance(layer, VisionTransformer) and is_of_patches(layer.conv1):
            yield f"{name}.conv1" if name else "conv1", layer.conv1


FUSED: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    ResidualAttentionBlock: (FusedResidualAttentionBlock, "add_layer_norm"),
    CustomResidualAttentionBlock: (FusedCustomResidualAttentionBlock, "add_layer_norm"),
}
