"""The names of a classifier's outputs, kept where timm keeps them: `label_names` in the model's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def set_class_names(model: nn.Module, names: Sequence[str]) -> None:
    """Names the outputs of a timm classifier, one each; `save_vision` writes them and `load_vision` reads them back."""
    known: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    model.pretrained_cfg = {**known, "num_classes": len(names), "label_names": list(names)}  # type: ignore[assignment]


def class_names_of(model: nn.Module) -> list[str]:
    """The names of a timm classifier's outputs in their order; none where nothing tells them."""
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    names = config.get("label_names") or ()
    if isinstance(names, Mapping):  # timm lets ids have gaps
        names = [str(names.get(number, names.get(str(number), number))) for number in range(int(model.num_classes))]  # type: ignore[arg-type]
    return list(names) if len(names) == model.num_classes else []
