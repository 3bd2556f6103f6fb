"""The recipe of `vfm distill`: images, a teacher, a student that learns its features, and a probe of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vfm.base import UserError, how_to_install
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.inputs import Fields, Input, model_input, named_apart, saved_artifact, split_name
from vfm.interfaces import Stage, VisionCheckpoint

METHOD = "eva.pretrain"
STUDENT = "student"  # name of the model that the recipe makes
WARMUP = 0.1  # fraction of the steps
MIN_LR = 1e-5  # learning rate at the end of the schedule
EVALUATIONS = ("eval.linear_probe", "eval.knn")


@dataclass(frozen=True)
class DistillationRequest:
    """Arguments of `vfm distill`.

    Attributes:
        images: folder, list, tars or table of images.
        teacher: the model whose features are the target.
        student: a timm name, to start from random weights, or an encoder, to start from its weights.
        steps: number of training steps.
        batch: images per step.
        lr: peak learning rate.
        probe: labelled images to evaluate on; empty: no evaluation.
        train: labelled training images of the probe.
    """

    images: str
    teacher: Input
    student: str | Input
    steps: int
    batch: int
    lr: float
    probe: str = ""
    train: str = ""


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
    teacher = named_apart(request.teacher, [STUDENT], "teacher")  # an earlier result may be named like the student
    stages: list[Fields] = [{"kind": "data.images", "name": "images", "path": request.images}]
    stages += [model.stage for model in (teacher, start) if model and model.stage]
    training: Fields = {
        "kind": METHOD,
        "name": STUDENT,
        "data": "images",
        "teacher": teacher.ref,
    }
    if issubclass(teacher.makes, VisionCheckpoint):
        training["target"] = {"projected": False}
    training |= {"start": start.ref} if start else {"model": request.student}
    training |= {
        "steps": request.steps,
        "global_batch_size": request.batch,
        "schedule": {"warmup_steps": max(1, round(WARMUP * request.steps)), "min_lr": min(MIN_LR, request.lr)},
        "lr": request.lr,
    }
    stages.append(training)
    if request.probe:
        stages += [{"kind": "data.labeled", "name": "probe_train", "path": request.train}]
        stages += [{"kind": "data.labeled", "name": "probe", "path": request.probe}]
        models = {"models": [teacher.ref, STUDENT], "train": "probe_train", "data": "probe"}
        stages += [{"kind": kind, "name": kind.rsplit(".", 1)[-1], **models} for kind in EVALUATIONS]
    name = start.name if start else request.student
    record = {"description": f"{name} learns {request.teacher.name}'s features of masked patches.", "stages": stages}
    return dump(record)


def student_input(word: str) -> str | Input:
    """Resolve a student: a timm name stays as it is, anything else is an encoder with weights."""
    name, rest = split_name(word)
    has_weights = name or saved_artifact(rest) or Path(rest).exists() or ":" in rest or "." in rest
    return model_input(word) if has_weights else word
