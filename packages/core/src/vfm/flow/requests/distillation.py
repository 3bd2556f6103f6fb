"""Write the recipe of `vfm distill`, with a student that learns a teacher's features, and a probe for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vfm.base import UserError, how_to_install, load_function
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.inputs import Fields, Input, model_input, named_apart, saved_artifact, split_name
from vfm.interfaces import Stage, VisionCheckpoint
from vfm.models.stages import FOLDER_PREFIX, HUB_PREFIX

METHOD = "eva.pretrain"
STUDENT = "student"  # name of the model that the recipe makes
BEFORE = "untrained"  # name of the student with its first weights, with which the probe compares
WARMUP = 0.1  # fraction of the steps
MIN_LR = 1e-5  # learning rate at the end of the schedule
EVALUATIONS = ("eval.linear_probe", "eval.knn")


@dataclass(frozen=True)
class DistillationRequest:
    """Arguments of `vfm distill`.

    Attributes:
        images: Folder, list, tars or table of images.
        teacher: The model whose features are the target.
        student: A timm name, to start from random weights, or an encoder, to start from its weights.
        steps: Number of training steps.
        batch: Images per step.
        lr: Peak learning rate.
        probe: Labelled images to evaluate on. Empty: no evaluation.
        train: Labelled training images of the probe.
        image_size: Pixels of the student's images. None: its own.
    """

    images: str
    teacher: Input
    student: str | Input
    steps: int
    batch: int
    lr: float
    probe: str = ""
    train: str = ""
    image_size: int | None = None


def distillation_recipe(request: DistillationRequest, known: Mapping[str, type[Stage]]) -> str:
    """Write the recipe as YAML.

    Raises:
        UserError: If the package with the method is not installed, or a probe lacks its training images.
    """
    if METHOD not in known:
        raise UserError(f"vfm distill needs the stage {METHOD}: {how_to_install('vfm-eva')}")
    if bool(request.probe) != bool(request.train):
        raise UserError("a probe needs two sets of labelled images: give both --probe and --train")
    start = request.student if isinstance(request.student, Input) else None
    teacher = named_apart(request.teacher, [STUDENT, BEFORE], "teacher")  # an earlier result may have the name
    stages: list[Fields] = [_import("data.images", "images", request.images)]
    for model in (teacher, start):
        if model and model.stage:
            stages.append(model.stage)
    training: Fields = {"kind": METHOD, "name": STUDENT, "data": "images"}
    taught: Fields = {"teacher": teacher.ref}
    if issubclass(teacher.makes, VisionCheckpoint):
        taught["target"] = {"projected": False}
    # Only a loss on the pooled feature reaches the layers after a network's feature map.
    training |= taught if _has_patches(request.student) else {"teachers": [taught | {"class_weight": 1.0}]}
    training |= {"start": start.ref} if start else {"model": request.student}
    training |= {"image_size": request.image_size} if request.image_size else {}
    training["mask"] = {"ratio": 0}
    training |= {
        "steps": request.steps,
        "global_batch_size": request.batch,
        "schedule": {"warmup_steps": max(1, round(WARMUP * request.steps)), "min_lr": min(MIN_LR, request.lr)},
        "lr": request.lr,
    }
    stages.append(training)
    if request.probe:
        stages += [_import("data.labeled", "probe_train", request.train)]
        stages += [_import("data.labeled", "probe", request.probe)]
        if not start:
            stages.append({**training, "name": BEFORE, "steps": 1, "lr": 0, "schedule": {"min_lr": 0}})
        before = start.ref if start else BEFORE
        models = {"models": [STUDENT, before, teacher.ref], "train": "probe_train", "data": "probe"}
        for kind in EVALUATIONS:
            stages.append({"kind": kind, "name": kind.rsplit(".", 1)[-1], **models})
    name = start.name if start else request.student
    record = {"description": f"{name} learns {request.teacher.name}'s features of patches.", "stages": stages}
    return dump(record)


def _import(kind: str, name: str, path: str) -> Fields:
    fields_for = load_function("vfm.flow.requests.datasets:fields_for")  # imports `vfm.data`
    return {"kind": kind, "name": name, **fields_for(kind, path)}


def _has_patches(student: str | Input) -> bool:
    """Check whether a student is a vision transformer, by its name or folder. Unknown ones count as such."""
    if isinstance(student, str):
        source = student
    else:
        source = str(student.stage["source"]) if student.stage else f"{FOLDER_PREFIX}{student.ref}"
    if Path(source).is_dir():
        source = f"{FOLDER_PREFIX}{source}"
    if source.startswith(HUB_PREFIX):  # its architecture is known after the download
        return True
    try:
        return bool(load_function("vfm.models.vision.architectures:is_vision_transformer")(source))
    except UserError:  # a mistake that the preflight reports
        return True


def student_input(word: str) -> str | Input:
    """Resolve a student.

    A timm name stays as it is. Anything else is an encoder with weights.
    """
    name, rest = split_name(word)
    has_weights = name or saved_artifact(rest) or Path(rest).exists() or ":" in rest or "." in rest
    return model_input(word) if has_weights else word
