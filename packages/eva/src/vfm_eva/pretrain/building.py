"""Building of the student: a vision transformer, or another network of timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vfm.models import build_vision, grid_size, has_patch_tokens
from vfm.plugin import VisionCheckpoint
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.pretrain.students.masking import check_class_token

__all__ = ["build_student", "left_out", "num_masked"]

_HEAD = "the encoder's own head"
_DROPPED = {"head.": _HEAD, "attn_pool.": "the student pools by the mean over its patches"}


def build_student(config: EvaPretrain, start: VisionCheckpoint | None = None) -> nn.Module:
    """Build the student with timm's initial weights, from `config.model` or the architecture of `start`.

    Unless the model's configuration sets a pooling, a vision transformer pools by the mean over its patches: no loss
    trains a pooling head. If a teacher teaches the class token, the default is to pool by the class token. Other
    networks keep their pooling.
    """
    mapping = _mapping(config.model)
    image_size = config.image_sizes[-1] if config.image_sizes else config.image_size
    if start:
        mapping = _mapping(f"local-dir:{start.path}")
        image_size = image_size or start.image_size
    with torch.device("meta"):
        default = build_vision(mapping)
    if has_patch_tokens(default):
        if config.image_sizes or config.naflex:
            mapping = {**mapping, "dynamic_img_size": True}
        model = _transformer(config, mapping, image_size)
    else:
        model = _network(config, mapping, image_size, takes_size=hasattr(default, "set_input_size"))
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    return model


def num_masked(config: EvaPretrain, student: nn.Module) -> int | None:
    """Compute the number of patches that a mask hides; None without masks or without patches."""
    if not config.mask.ratio or not has_patch_tokens(student):
        return None
    rows, columns = grid_size(student)
    return round(config.mask.ratio * rows * columns)


def left_out(student: Any, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """List the weights of another encoder that a student leaves out, by key or its beginning, with the reasons."""
    if has_patch_tokens(student):
        return _DROPPED
    names = student.pretrained_cfg.get("classifier") or ()
    parts = [name.split(".")[0] for name in ([names] if isinstance(names, str) else names)]
    expected = student.state_dict()
    return {key: _HEAD for key in weights if key not in expected and key.split(".")[0] in parts}


def _transformer(config: EvaPretrain, mapping: Mapping[str, Any], image_size: int | None) -> nn.Module:
    def build(global_pool: str) -> nn.Module:
        return build_vision(
            {"global_pool": global_pool, **mapping},
            image_size=image_size,
            num_classes=0,
            seed=config.seed,
            drop_path_rate=config.student.drop_path,
        )

    if not config.teaches_class_token:
        return build("avg")
    with torch.device("meta"):  # a student without a class token cannot be built to pool by it
        check_class_token(build("avg"))
    return build("token")


def _network(config: EvaPretrain, mapping: Mapping[str, Any], image_size: int | None, *, takes_size: bool) -> nn.Module:
    """Build a network. One of convolutions takes images of any size, and its size is only noted."""
    drop_path = config.student.drop_path or None  # RepViT, among others, has no such argument
    size = image_size if takes_size else None
    model = build_vision(mapping, image_size=size, num_classes=0, seed=config.seed, drop_path_rate=drop_path)
    if image_size and not takes_size:
        settings: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        model.pretrained_cfg = {**settings, "input_size": (3, image_size, image_size)}  # type: ignore[assignment]
    return model


def _mapping(model: str | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(model, str):
        return model
    return {"architecture": model}
