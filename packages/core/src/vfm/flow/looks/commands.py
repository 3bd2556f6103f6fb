"""Choose the commands that train on a dataset. Each can be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from vfm.flow.recipe.yaml_lines import flow_text
from vfm.flow.requests.inputs import Fields

CLIP = "ViT-B-32,openai"
ENCODER = "vit_small_patch16_224.augreg_in21k_ft_in1k"
TEACHER = "vit_base_patch14_dinov2.lvd142m"
STUDENT = "vit_small_patch16_224"
RECIPES = {"data.annotated": "boxes", "data.videos": "actions", "mllm.questions": "questions"}


def training_commands(
    fields: Fields, val: Fields | None, cures: Mapping[str, Any], *, has_images: bool = True
) -> list[str]:
    """Choose the commands for a dataset, best first.

    Args:
        fields: Fields of the stage that imports it.
        val: Fields for the validation images next to it, if there are any.
        cures: Fields that the user must confirm.
        has_images: Whether the samples have images, and are not captions alone.
    """
    kind = fields["kind"]
    path = _word(fields["path"])
    options = "".join(f" --data-option {key}={_word(value)}" for key, value in cures.items())
    val_option = f" --val {_word(val['path'])}" if val and val["kind"] == kind else ""
    if kind in RECIPES:
        return [f"vfm run {RECIPES[kind]}{_settings('train', fields)}"]
    if kind == "data.pairs" and not has_images:
        return [f"vfm run curate{_settings('pool', fields)}"]
    if kind == "data.pairs":
        return [f"vfm finetune {CLIP} {path}{val_option}{options}"]
    if kind == "data.labeled":
        method = "" if val_option else " --method finetune"  # the others need images to evaluate on
        return [f"vfm classify {path}{val_option} --model {ENCODER}{method}{options}"]
    if kind == "data.images":
        return [f"vfm distill {path} --teacher {TEACHER} --student {STUDENT}"]
    return [f"vfm eval {CLIP} --data {path}{options}"]


def _settings(stage: str, fields: Fields) -> str:
    """Write the fields of a stage as options of `vfm run`."""
    options = []
    for key, value in fields.items():
        if key not in ("kind", "name"):
            setting = f"{stage}.{key}={flow_text(value)}"
            options.append(f" --set {shlex.quote(setting)}")
    return "".join(options)


def _word(value: object) -> str:
    return shlex.quote(value if isinstance(value, str) else flow_text(value))
