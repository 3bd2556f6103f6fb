"""Store weights wider than in the model where tensor cores are slow at its width, 2730 as 2752 or 588 as 592.

Matrix products need operands whose rows are a multiple of 16 bytes long. EVA-02-L's hidden width of 2730 and the 588
values of a 14 x 14 patch are not, so cuBLAS takes a kernel of an older generation. The padding is zero and stays zero,
because its gradients are zero. State dicts have the true shapes, so checkpoints equal the unpadded model's.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm_kernels.layers.accelerate import Acceleration, model_libraries


@contextmanager
def padded(*models: nn.Module) -> Iterator[str]:
    """Apply `pad_swiglu` and `pad_patch_embed` within the block, and yield a description of the widened layers.

    Models without such layers are left unchanged.
    """
    together = nn.ModuleList(models)
    with ExitStack() as stack:
        paddings = []
        for pad in (pad_swiglu, pad_patch_embed):
            with suppress(ValueError):
                paddings.append(stack.enter_context(pad(together)))
        reasons: set[str] = set()
        for padding in paddings:
            reasons.update(padding.skipped.values())
        listed = "; ".join(sorted(reasons) or ["no width needs it"])
        yield ", ".join(str(padding) for padding in paddings if padding.replaced) or f"nothing, {listed}"


def pad_swiglu(model: nn.Module, multiple: int = 64) -> Acceleration:
    """Widen the hidden layer of each timm `SwiGLU` with a norm to a multiple. Outputs and gradients stay the same.

    Call it before creating the optimiser, whose states have the padded shapes. State dicts of the model are copies in
    the true shapes. Linear layers of other classes than torch's (LoRA's) are skipped.

    Args:
        model: Model with timm's layers, such as an `Eva`.
        multiple: 64 fills the tiles of matrix products; 8 would suffice for 16-byte rows.

    Returns:
        The widened layers, none if all widths fit. As a context manager it reverses itself.

    Raises:
        ValueError: If the model has no SwiGLU with a norm.
    """
    # timm is optional
    from timm.layers import SwiGLU

    from vfm_kernels.layers.timm_layers import FusedSwiGLU, reason_against

    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SwiGLU) and reason_against(layer, model) is None:
            layers[name] = layer
    if not layers:
        raise ValueError(f"{type(model).__name__} has no SwiGLU with a norm to pad")
    acceleration = Acceleration()
    for name, layer in layers.items():
        inner = (layer.fc1_g, layer.fc1_x)
        outer = layer.fc2
        # A subclass, such as a LoRA layer, may use the weights in another way.
        if any(type(linear) is not nn.Linear for linear in (*inner, outer)):
            acceleration.skipped[name] = "its linear layers are not torch's own"
            continue
        width = outer.in_features
        wider = -(-width // multiple) * multiple
        if wider == width:
            continue
        for linear in inner:
            _widen(acceleration, linear, weight=(wider, linear.in_features), bias=(wider,))
        _widen(acceleration, outer, weight=(outer.out_features, wider))
        # The layers report the widths of their padded weights.
        for linear, side in ((inner[0], "out_features"), (inner[1], "out_features"), (outer, "in_features")):
            acceleration.on_undo(setattr, linear, side, width)
            setattr(linear, side, wider)
        acceleration.replace(model, name, FusedSwiGLU, f"SwiGLU of {width} as {wider}")
    return acceleration


def pad_patch_embed(model: nn.Module, multiple: int = 16) -> Acceleration:
    """Turn each patch embedding into a matrix product over patches of a padded length. The result stays the same.

    It supports timm's `PatchEmbed` and open_clip's `VisionTransformer`. Arguments, result and the time to call it are
    as for `pad_swiglu`.

    Raises:
        ValueError: If the model has no patch embedding of adjacent patches.
    """
    projections: dict[str, nn.Conv2d] = {}
    for library in model_libraries():
        projections.update(library.patch_projections(model))
    if not projections:
        raise ValueError(f"{type(model).__name__} has no patch embedding of patches that do not overlap")
    acceleration = Acceleration()
    for name, proj in projections.items():
        length = proj.weight[0].numel()
        wider = -(-length // multiple) * multiple
        if wider != length:
            # Widened after it is replaced: the hooks of state dicts belong to the module that stays in the model.
            description = f"patch embedding of {length} as {wider}"
            matrix = acceleration.replace(model, name, PaddedPatchProjection, description)
            _widen(acceleration, matrix, weight=(proj.out_channels, wider))
    return acceleration


class PaddedPatchProjection(nn.Conv2d):
    """A convolution of adjacent patches as a matrix product. Its `weight` is (D, padded length)."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, rows, columns), as the convolution does."""
        (height, width), (batch, channels) = self.kernel_size, images.shape[:2]
        rows, columns = images.shape[2] // height, images.shape[3] // width
        patches = images[:, :, : rows * height, : columns * width]
        patches = patches.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(3)
        # (B, rows, columns, C * height * width)
        # Zeros meet the weight's zero padding, so the product is the same.
        patches = F.pad(patches, (0, self.weight.shape[1] - patches.shape[-1]))
        return F.linear(patches, self.weight, self.bias).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _TrueShape:
    """A parameter's shape in checkpoints, and that shape flattened to the number of stored dimensions."""

    name: str
    shape: tuple[int, ...]
    flat: tuple[int, ...]

    def of(self, stored: Tensor) -> Tensor:
        """Copy a stored tensor without the padding."""
        return stored[tuple(map(slice, self.flat))].reshape(self.shape).clone()


def _cut(true: _TrueShape, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Remove the padding in a state dict, as a hook of `state_dict`."""
    stored = state_dict.get(prefix + true.name)
    if stored is not None:
        state_dict[prefix + true.name] = true.of(stored)


def _restore(true: _TrueShape, module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Pad a loaded tensor, as a hook of `load_state_dict`. A tensor of another shape is left for torch to refuse."""
    loaded = state_dict.get(prefix + true.name)
    if loaded is not None and loaded.shape == true.shape:
        state_dict[prefix + true.name] = _pad(loaded.reshape(true.flat), getattr(module, true.name).shape)


def _widen(acceleration: Acceleration, module: nn.Module, **stored: tuple[int, ...]) -> None:
    """Store parameters in wider shapes with zero padding. Surplus dimensions are flattened.

    They stay the same parameter objects, so hooks and optimiser groups that hold them are unaffected.
    """
    for name, shape in stored.items():
        parameter = getattr(module, name)
        if parameter is None:
            continue
        flat = parameter.data.flatten(len(shape) - 1)
        true = _TrueShape(name, tuple(parameter.shape), tuple(flat.shape))
        parameter.data = _pad(flat, shape)
        parameter.grad = None
        acceleration.on_undo(_narrow, parameter, true)
        hooks: list[Any] = [
            module.register_state_dict_post_hook(partial(_cut, true)),  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(partial(_restore, true)),  # type: ignore[no-untyped-call]
        ]
        for hook in hooks:
            acceleration.on_undo(hook.remove)


def _narrow(parameter: nn.Parameter, true: _TrueShape) -> None:
    parameter.data = true.of(parameter.data)
    parameter.grad = None


def _pad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    padded = torch.zeros(tuple(shape), dtype=tensor.dtype, device=tensor.device)
    padded[tuple(map(slice, tensor.shape))] = tensor
    return padded
