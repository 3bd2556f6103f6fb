"""The encoder of a released detector or segmenter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from vfm.models import build_vision

# EVA's encoders are pre-trained with CLIP's mean and deviation, as timm has them, its dense models with ImageNet's.
PREPROCESSING = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def build_released(model: str | Mapping[str, Any]) -> nn.Module:
    """Build the encoder of a dense model that EVA has released, with random weights.

    Args:
        model: as in `build_vision`.

    Raises:
        UserError: the name is unknown, or an argument is invalid.
    """
    return build_vision(model, num_classes=0, pretrained_cfg_overlay=PREPROCESSING)
