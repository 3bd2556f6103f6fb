"""Interpolation between the weights of two CLIP models with the same architecture (WiSE-FT), and evaluations of it.

Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from vfm.base import UserError
from vfm.eval.interpolation.interpolation_line import evaluate_line
from vfm.eval.interpolation.stages import Interpolate
from vfm.interfaces import ClipCheckpoint, Context, Preflight
from vfm.models.clip.clip import ClipModel, blueprint, load_clip, save_clip

# Configuration keys that may be set in training and do not change the trained function.
_TRAINING_KEYS = {
    "init_logit_scale",
    "init_logit_bias",
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "ls_init_value",
}


def interpolate_checkpoints(config: Interpolate, ctx: Context) -> ClipCheckpoint:
    """Run `models.interpolate`.

    If there are tasks, models along the line are evaluated. The model at `alpha` is saved.
    """
    start, end = load_clip(ctx.load(config.start)), load_clip(ctx.load(config.end))
    if config.evaluation.tasks:
        evaluate_line(config, ctx, lambda alpha: interpolate(start, end, alpha))
    mixed = interpolate(start, end, config.alpha)
    mixed.name = f"{start.name} to {end.name}, {config.alpha:g}" if end.name != start.name else start.name
    return save_clip(mixed, ctx.directory)


def check_interpolation(config: Interpolate, ctx: Preflight) -> None:
    """Check that the two models have the same architecture, if both already exist."""
    start, end = ctx.artifact(config.start), ctx.artifact(config.end)
    if start and end:
        check_same_architecture(blueprint(start), blueprint(end))


def interpolate(start: ClipModel, end: ClipModel, alpha: float) -> ClipModel:
    """Interpolate the weights of two models as `(1 - alpha) * start + alpha * end`.

    An `alpha` of 0 or 1 gives one of the two models bit for bit.

    Args:
        start: For example the pretrained model.
        end: For example the fine-tuned model.
        alpha: Position from 0 to 1.

    Returns:
        A new model in evaluation mode, with the configuration of `start`.

    Raises:
        UserError: If the models differ in architecture or preprocessing.
    """
    check_same_architecture(start, end)
    mixed = ClipModel(deepcopy(start.module), start.config, start.preprocess, start.name, start.folder)
    others = end.module.state_dict()
    weights = {name: _mix(value, others[name], alpha) for name, value in start.module.state_dict().items()}
    mixed.module.load_state_dict(weights)
    mixed.module.eval()
    return mixed


def check_same_architecture(start: ClipModel, end: ClipModel) -> None:
    """Check that two models can be interpolated. Only shapes are compared, so `blueprint` models are enough.

    Raises:
        UserError: If the models differ. The message has the first difference.
    """
    pair = f"{start.name} and {end.name} cannot be interpolated"
    first_shapes = _shapes(start)
    second_shapes = _shapes(end)
    for name in sorted(first_shapes.keys() | second_shapes.keys()):
        first = first_shapes.get(name, "absent")
        second = second_shapes.get(name, "absent")
        if first != second:
            raise UserError(f"{pair}: {name} is {first} in the first, {second} in the second")
    _check_same_values(pair, _flat_config(start.config), _flat_config(end.config))
    _check_same_values(pair, start.preprocess.model_dump(), end.preprocess.model_dump())


def _check_same_values(pair: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            raise UserError(f"{pair}: {key} is {first.get(key)!r} in the first, {second.get(key)!r} in the second")


def _mix(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Interpolate floating-point tensors. Other tensors, such as batch counts, are taken from the nearer model."""
    if alpha in (0, 1) or not start.is_floating_point():
        return start if alpha < 0.5 else end
    return torch.lerp(start.float(), end.float(), alpha).to(start.dtype)


def _shapes(model: ClipModel) -> dict[str, str]:
    return {name: str(list(value.shape)) for name, value in model.module.state_dict().items()}


def _flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten the keys of a configuration, without keys that only matter in training."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat_config(value, f"{prefix}{key}.")
        elif key not in _TRAINING_KEYS and value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
