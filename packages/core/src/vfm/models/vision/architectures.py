"""Facts about timm's architectures without their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vfm.base import UserError
from vfm.models.vision.vision import build_vision
from vfm.models.vision.vision_towers import vision_tower


def is_vision_transformer(name: str) -> bool:
    """Check whether a name of timm is a transformer over patches, without its weights.

    Raises:
        UserError: If timm has no such model.
    """
    with torch.device("meta"):
        return has_patch_tokens(build_vision(name))


def has_patch_tokens(model: nn.Module) -> bool:
    """Check whether an encoder of timm is a transformer over patches, as `vision_tower` takes."""
    try:
        vision_tower(model)
    except UserError:
        return False
    return True


def check_vision_transformer(model: str | Mapping[str, Any]) -> None:
    """Refuse an encoder without patch tokens.

    Otherwise it would be refused for an argument that it lacks, such as `drop_path_rate`.

    Args:
        model: As for `build_vision`.

    Raises:
        UserError: If it is not a transformer over patches, or does not exist.
    """
    with torch.device("meta"):
        vision_tower(build_vision(model))
