"""Save mask token, heads and decoder of a pre-training next to the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vfm_eva.targets.phi_s import PhiS

__all__ = ["heads_of", "load_added", "saved_added"]


def heads_of(task: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield a task's heads for patches, then its heads for whole images, with their names in saved files."""
    for number, objective in enumerate(task.objectives):
        name = f"other_heads.{number - 1}" if number else "head"
        yield name, objective.head
    for number, objective in enumerate(task.objectives):
        if objective.class_head is not None:
            yield f"class_heads.{number}", objective.class_head


def saved_added(task: nn.Module) -> dict[str, Tensor]:
    """Collect the mask token, heads and decoder by name. Heads are converted to predict unstandardised features.

    Without masks there is no mask token.
    """
    state = task.state_dict()
    added = {key: value for key, value in state.items() if not key.startswith(("student.", "objectives."))}
    if not task.is_masked:
        del added["mask_token"]
    for name, head in heads_of(task):
        added |= {f"{name}.weight": head.weight.detach(), f"{name}.bias": head.bias.detach()}
    for name, phi_s in _standardised(task):
        weight, bias = phi_s.to_features(added[f"{name}.weight"], added[f"{name}.bias"])
        added |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return added


def load_added(task: nn.Module, added: Mapping[str, Tensor]) -> bool:
    """Load the mask token, head and decoder of an earlier run if all of them fit, and return whether they did.

    Without masks the mask token is left out.
    """
    expected = saved_added(task)
    added = dict(added)
    if not task.is_masked:
        added.pop("mask_token", None)
    fits = expected.keys() == added.keys()
    fits = fits and all(expected[key].shape == value.shape for key, value in added.items())
    if fits:
        for name, phi_s in _standardised(task):
            weight, bias = phi_s.from_features(added[f"{name}.weight"], added[f"{name}.bias"])
            added |= {f"{name}.weight": weight, f"{name}.bias": bias}
        for name, head in heads_of(task):
            head.load_state_dict({key: added.pop(f"{name}.{key}") for key in ("weight", "bias")})
        task.load_state_dict(added, strict=False)
    return fits


def _standardised(task: Any) -> Iterator[tuple[str, PhiS]]:
    """Yield the name of each head that predicts standardised features, and its standardisation."""
    for (name, _), objective in zip(heads_of(task), task.objectives, strict=False):
        if objective.phi_s:
            yield name, objective.phi_s
