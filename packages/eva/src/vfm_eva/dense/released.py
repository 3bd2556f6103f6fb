"""Encoders of EVA's released detectors and segmenters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from vfm.models import build_vision

# EVA's dense models use ImageNet's mean and deviation. Its encoders, as listed in timm, were pre-trained with CLIP's.
PREPROCESSING = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def build_released(model: str | Mapping[str, Any]) -> nn.Module:
    """Build the encoder of a dense model released by EVA, with random weights.

    Args:
        model: As in `build_vision`.

    Raises:
        UserError: If the name is unknown, or an argument is invalid.
    """
    return build_vision(model, num_classes=0, pretrained_cfg_overlay=PREPROCESSING)
