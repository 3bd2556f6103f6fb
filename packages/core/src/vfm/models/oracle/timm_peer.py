"""Comparison of an imported encoder with timm's own loader and preprocessing. EVA's files are read by timm as well."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import timm
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from vfm.models.oracle.inputs import noise, pixel_differences, relative
from vfm.models.vision.vision import vision_preprocess
from vfm.models.weights import load_state_dict


def timm_differences(model: Any, source: str, weights: str | None = None) -> dict[str, float]:
    """Compute the differences between an imported encoder and timm by name.

    Args:
        model: The imported encoder, in evaluation mode.
        source: Name of the encoder in timm, or `local-dir:FOLDER`.
        weights: A file. Default: the weights of the name or folder.
    """
    peer: Any = _with_file(model, source, Path(weights)) if weights else timm.create_model(source, pretrained=True)
    peer.eval()
    preprocess = vision_preprocess(model)
    pixels = noise(preprocess.image_size)
    features, theirs = model.forward_features(pixels), peer.forward_features(pixels)
    differences = {
        "tokens": relative(features, theirs),
        "features": relative(model.forward_head(features), peer.forward_head(theirs)),
    }
    transform: Any = create_transform(**resolve_model_data_config(peer), is_training=False)
    return differences | pixel_differences(preprocess, transform)


def _with_file(model: nn.Module, source: str, file: Path) -> nn.Module:
    """Build timm's encoder with a file's tensors, read safely, and converted by the filter next to the architecture."""
    arguments: dict[str, Any] = {"num_classes": model.num_classes}
    if getattr(model, "global_pool", None) in ("avg", "token"):
        arguments["global_pool"] = model.global_pool
    peer: nn.Module = timm.create_model(source, **arguments)
    convert: Any = getattr(sys.modules[type(peer).__module__], "checkpoint_filter_fn", lambda tensors, model: tensors)
    peer.load_state_dict(convert(load_state_dict(file), peer))
    return peer
