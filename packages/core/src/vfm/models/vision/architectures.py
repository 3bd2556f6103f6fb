"""Facts about timm's architectures without their weights."""

from __future__ import annotations

import torch

from vfm.base import UserError
from vfm.models.vision.vision import build_vision
from vfm.models.vision.vision_towers import vision_tower


def is_vision_transformer(name: str) -> bool:
    """Check whether a name of timm is a transformer over patches, without its weights.

    Raises:
        UserError: If timm has no such model.
    """
    with torch.device("meta"):
        model = build_vision(name)
    try:
        vision_tower(model)
    except UserError:
        return False
    return True
