"""Between two models of one architecture: their weights, mixed (WiSE-FT)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from vfm.config import UserError
from vfm.models.clip import ClipModel

# Keys of a configuration that a training may set and that change no function.
_OF_TRAINING = {"init_logit_scale", "init_logit_bias", "patch_dropout", "timm_drop", "timm_drop_path", "ls_init_value"}


def interpolate(start: ClipModel, end: ClipModel, alpha: float) -> ClipModel:
    """A model whose weights lie at `alpha` on the line from `start` to `end`, which give 0 and 1 bit for bit.

    Args:
        start: e.g. the pretrained model.
        end: what became of it by fine-tuning.
        alpha: 0 to 1.

    Returns:
        A new model in evaluation mode, with the configuration of `start`.

    Raises:
        UserError: they are not of one architecture, or do not see images or texts alike.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv:2109.01903).
    """
    check_alike(start, end)
    mixed = ClipModel(deepcopy(start.module), start.config, start.preprocess, start.name, start.folder)
    others = end.module.state_dict()
    weights = {name: _between(value, others[name], alpha) for name, value in start.module.state_dict().items()}
    mixed.module.load_state_dict(weights)
    mixed.module.eval()
    return mixed


def check_alike(start: ClipModel, end: ClipModel) -> None:
    """Refuses models that a line between their weights would not join; shapes are enough (`blueprint`).

    Raises:
        UserError: the first difference.
    """
    what = f"{start.name} and {end.name} cannot be interpolated"
    shapes = [{name: tuple(value.shape) for name, value in model.module.state_dict().items()} for model in (start, end)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        one, other = (str(list(each[name])) if name in each else "absent" for each in shapes)
        if one != other:
            raise UserError(f"{what}: {name} is {one} in the one, {other} in the other")
    for facts in ([_facts(model.config) for model in (start, end)], [m.preprocess.model_dump() for m in (start, end)]):
        for key in sorted(facts[0].keys() | facts[1].keys()):
            if facts[0].get(key) != facts[1].get(key):
                raise UserError(
                    f"{what}: {key} is {facts[0].get(key)!r} in the one, {facts[1].get(key)!r} in the other"
                )


def _between(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Numbers on the way; what is no floating-point number (a count of batches) is the nearer model's."""
    if alpha in (0, 1) or not start.is_floating_point():
        return start if alpha < 0.5 else end
    return torch.lerp(start.float(), end.float(), alpha).to(start.dtype)


def _facts(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as flat keys, but for what belongs to a training."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _facts(value, f"{prefix}{key}.")
        elif key not in _OF_TRAINING and value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
