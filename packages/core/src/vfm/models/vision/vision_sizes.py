"""Running a vision transformer at another image size than its own, without changing its weights."""

# B batch, H and W pixels, P prefix tokens, N patches, D width

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.func import functional_call

from vfm.base import UserError

Sides = tuple[int, int]
Resample = Callable[[Tensor, Sides, Sides], Tensor]
"""Maps learned positions (1, P + N, D), their grid and another grid to positions for it. P prefix tokens stay."""


def resample_positions(positions: Tensor, old_grid: Sides, grid: Sides) -> Tensor:
    """Interpolate positions to another grid, as timm does.

    Args:
        positions: (1, P + N, D). The P prefix tokens keep their positions.
        old_grid: Rows and columns of the positions.
        grid: Rows and columns of the result.
    """
    num_prefix_tokens = positions.shape[1] - old_grid[0] * old_grid[1]
    resampled: Tensor = resample_abs_pos_embed(
        positions, new_size=list(grid), old_size=list(old_grid), num_prefix_tokens=num_prefix_tokens
    )
    return resampled


def patch_stride(embed: Any) -> Sides:
    """Compute the pixels between neighbouring patches of a timm embedding.

    Its `patch_size` describes only the last convolution. In MobileCLIP and ViTamin this one follows others.
    """
    stride: Sides = embed.feat_ratio(as_scalar=False)
    return stride


def intermediates_at_size(
    visual: Any, pixels: Tensor, *, resample: Resample = resample_positions, **arguments: Any
) -> Any:
    """Call `forward_intermediates` of a vision transformer at the size of the pixels.

    Learned positions are interpolated as timm does when it loads a checkpoint for another size (bicubic, antialiased),
    in every call and with gradients, so that the stored positions can be trained at several sizes. Rotary positions are
    computed for the new grid. At the model's own size nothing is changed.

    Args:
        visual: open_clip's or timm's vision transformer.
        pixels: (B, 3, H, W).
        resample: How learned positions are interpolated.
        arguments: Arguments of `forward_intermediates`.

    Raises:
        UserError: If a size other than the model's is not a multiple of the patch size, or the model's positions work
            for a single size only.
    """
    size: Sides = (pixels.shape[2], pixels.shape[3])
    is_open_clip = isinstance(visual, OpenClipViT)
    if is_open_clip:
        own_size = visual.image_size
        patch = visual.patch_size
    else:
        own_size = visual.patch_embed.img_size
        patch = patch_stride(visual.patch_embed)
    if size == tuple(own_size):
        return visual.forward_intermediates(pixels, **arguments)
    if any(side % step for side, step in zip(size, patch, strict=True)):
        raise UserError(
            f"{type(visual).__name__}: images of another size than its own, {_sides(own_size)}, must have sides that"
            f" are multiples of the patch size {_sides(patch)}; got {_sides(size)} pixels"
        )
    if getattr(visual, "dynamic_img_size", False):
        return visual.forward_intermediates(pixels, **arguments)
    grid = (size[0] // patch[0], size[1] // patch[1])
    if is_open_clip:
        positions = resample(visual.positional_embedding[None], visual.grid_size, grid)[0]
        return _call_with({"positional_embedding": positions}, visual, pixels, arguments)
    tensors = _timm_positions(visual, grid, resample)
    with _input_size(visual.patch_embed, size):
        return _call_with(tensors, visual, pixels, arguments)


class _Intermediates(nn.Module):
    """A module whose `forward` is `forward_intermediates`, since `functional_call` can only call `forward`."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor, **arguments: Any) -> Any:
        return self.visual.forward_intermediates(pixels, **arguments)  # type: ignore[operator]


def _call_with(tensors: dict[str, Tensor], visual: nn.Module, pixels: Tensor, arguments: dict[str, Any]) -> Any:
    """Call `forward_intermediates` with other tensors in place of some of its parameters and buffers."""
    named = {f"visual.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(_Intermediates(visual), named, (pixels,), arguments)


def _timm_positions(trunk: Any, grid: Sides, resample: Resample) -> dict[str, Tensor]:
    """Compute the learned and the rotary positions of a timm transformer for a grid, by name."""
    if any("rel_pos" in name or "relative_position" in name for name, _ in trunk.named_parameters()):
        raise UserError(
            f"{type(trunk).__name__}: its relative positions are for {_sides(trunk.patch_embed.img_size)} pixels only;"
            " load the encoder with another image_size"
        )
    tensors = {}
    if getattr(trunk, "pos_embed", None) is not None:
        tensors["pos_embed"] = resample(trunk.pos_embed, trunk.patch_embed.grid_size, grid)
    if getattr(trunk, "rope", None) is not None:
        rope = deepcopy(trunk.rope)
        rope.update_feat_shape(grid)
        for name, value in rope.named_buffers():
            tensors[f"rope.{name}"] = value
    return tensors


@contextmanager
def _input_size(embed: Any, size: Sides) -> Iterator[None]:
    """Set the size that a timm patch embedding checks within the block."""
    before = embed.img_size
    embed.set_input_size(img_size=size)
    try:
        yield
    finally:
        embed.set_input_size(img_size=before)


def _sides(size: Any) -> str:
    return " x ".join(map(str, size))
