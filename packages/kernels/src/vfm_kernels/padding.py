"""Weights stored wider than the model is, where its width is one that tensor cores do badly: 2730 as 2752, 588 as 592.

Matrix products want operands whose rows are a multiple of 16 bytes long. EVA-02-L's hidden width of 2730 and the 588
values of a 14 x 14 patch are not, so cuBLAS takes a kernel of an older generation. The padding is zero and stays zero,
since its gradients are zeros; state dicts have the true shapes, so checkpoints are those of the model as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_swiglu(model: nn.Module, multiple: int = 64) -> list[str]:
    """Widens the hidden layer of each timm `SwiGLU` with a norm to a multiple; outputs and gradients stay the same.

    Call it before the optimiser is made, as parameters are new. Optimiser states have the padded shapes; state dicts of
    the model are copies in the true ones.

    Args:
        model: with timm's layers, such as an `Eva`.
        multiple: 64 fills the tiles of matrix products; 8 would be enough for 16-byte rows.

    Returns:
        Names of the layers that were widened; none where all widths fit.

    Raises:
        ValueError: the model has no SwiGLU with a norm.
    """
    from timm.layers import SwiGLU

    from vfm_kernels.timm_layers import FusedSwiGLU, reason_against

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SwiGLU)}
    layers = {name: layer for name, layer in layers.items() if reason_against(layer, model) is None}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no SwiGLU with a norm, whose hidden layer could be padded")
    widened = []
    for name, layer in layers.items():
        width = layer.fc1_g.out_features
        padded = -(-width // multiple) * multiple
        if padded == width:
            continue
        for linear in (layer.fc1_g, layer.fc1_x):
            _widen(linear, weight=(padded, linear.in_features), bias=(padded,))
            linear.out_features = padded
        _widen(layer.fc2, weight=(layer.fc2.out_features, padded))
        layer.fc2.in_features = padded
        layer.__class__ = FusedSwiGLU
        widened.append(name)
    return widened


def pad_patch_embed(model: nn.Module, multiple: int = 16) -> list[str]:
    """Makes each timm `PatchEmbed` a matrix product over patches of a padded length; the result stays the same.

    Arguments, result and the time to call it are those of `pad_swiglu`.

    Raises:
        ValueError: the model has no patch embedding of patches that do not overlap.
    """
    from timm.layers import PatchEmbed

    found = [(name, layer.proj) for name, layer in model.named_modules() if isinstance(layer, PatchEmbed)]
    found = [(name, proj) for name, proj in found if proj.kernel_size == proj.stride and proj.groups == 1]
    if not found:
        raise ValueError(f"{type(model).__name__} has no patch embedding of patches that do not overlap")
    widened = []
    for name, proj in found:
        length = proj.weight[0].numel()
        padded = -(-length // multiple) * multiple
        if padded != length:
            _widen(proj, weight=(proj.out_channels, padded))
            proj.__class__ = PaddedPatchProjection
            widened.append(name)
    return widened


class PaddedPatchProjection(nn.Conv2d):
    """A convolution of patches side by side, as the matrix product that it is; `weight` is (D, padded length)."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, rows, columns), as a convolution does."""
        (height, width), (batch, channels) = self.kernel_size, images.shape[:2]
        rows, columns = images.shape[2] // height, images.shape[3] // width
        patches = images[:, :, : rows * height, : columns * width]
        patches = patches.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(3)
        patches = F.pad(patches, (0, self.weight.shape[1] - patches.shape[-1]))
        return F.linear(patches, self.weight, self.bias).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _TrueShape:
    """A parameter's shape in checkpoints, and the same with as many dimensions as are stored."""

    name: str
    shape: tuple[int, ...]
    flat: tuple[int, ...]


def _cut(true: _TrueShape, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """The hook of `state_dict`."""
    stored = state_dict.get(prefix + true.name)
    if stored is not None:
        state_dict[prefix + true.name] = stored[tuple(map(slice, true.flat))].reshape(true.shape).clone()


def _restore(true: _TrueShape, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The hook of `load_state_dict`; a shape that is not the true one is left for torch to refuse."""
    given = state_dict.get(prefix + true.name)
    if given is not None and given.shape == true.shape:
        state_dict[prefix + true.name] = _pad(given.reshape(true.flat), getattr(module, true.name).shape)


def _widen(module: nn.Module, **stored: tuple[int, ...]) -> None:
    """Stores parameters in wider shapes, zero beyond their own; a dimension more than stored is flattened."""
    for name, shape in stored.items():
        parameter = getattr(module, name)
        if parameter is None:
            continue
        flat = parameter.flatten(len(shape) - 1)
        padded = nn.Parameter(_pad(flat.detach(), shape), requires_grad=parameter.requires_grad)
        setattr(module, name, padded)
        true = _TrueShape(name, tuple(parameter.shape), tuple(flat.shape))
        module.register_state_dict_post_hook(partial(_cut, true))  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(partial(_restore, true))  # type: ignore[no-untyped-call]


def _pad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    padded = torch.zeros(tuple(shape), dtype=tensor.dtype, device=tensor.device)
    padded[tuple(map(slice, tensor.shape))] = tensor
    return padded
