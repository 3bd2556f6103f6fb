"""The recipe of `vfm distill`: pictures, a teacher, a student that learns its features, and a probe of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vfm.base import UserError, how_to_install
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.inputs import Fields, Input, named_apart
from vfm.interfaces import Stage, VisionCheckpoint

METHOD = "eva.pretrain"
STUDENT = "student"  # name of the model that the recipe makes
WARMUP = 0.1  # of the steps
MIN_LR = 1e-5  # at the end of the schedule
EVALUATIONS = ("eval.linear_probe", "eval.knn")


@dataclass(frozen=True)
class DistillationRequest:
    """What a user gives.

    Attributes:
        images: folder, list, tars or table of pictures.
        teacher: the model whose features are the target.
        student: a timm name, which starts from random weights; or an encoder with weights, from which it starts.
        steps: steps of the training.
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


def distillation_recipe(given: DistillationRequest, known: Mapping[str, type[Stage]]) -> str:
    """Return the recipe as YAML.

    Raises:
        UserError: the package with the method is not installed, or a probe lacks its training images.
    """
    if METHOD not in known:
        raise UserError(f"vfm distill needs the stage {METHOD}: {how_to_install('vfm-eva')}")
    if bool(given.probe) != bool(given.train):
        raise UserError("a probe needs two sets of labelled images: give both --probe and --train")
    start = given.student if isinstance(given.student, Input) else None
    teacher = named_apart(given.teacher, [STUDENT], "teacher")  # an earlier result has this name
    stages: list[Fields] = [{"kind": "data.images", "name": "images", "path": given.images}]
    stages += [model.stage for model in (teacher, start) if model and model.stage]
    stages.append(
        {
            "kind": METHOD,
            "name": STUDENT,
            "data": "images",
            "teacher": teacher.ref,
            **({"target": {"projected": False}} if issubclass(teacher.makes, VisionCheckpoint) else {}),
            **({"start": start.ref} if start else {"model": given.student}),
            "steps": given.steps,
            "global_batch_size": given.batch,
            "schedule": {"warmup_steps": max(1, round(WARMUP * given.steps)), "min_lr": min(MIN_LR, given.lr)},
            "lr": given.lr,
        }
    )
    if given.probe:
        stages += [{"kind": "data.labeled", "name": "probe_train", "path": given.train}]
        stages += [{"kind": "data.labeled", "name": "probe", "path": given.probe}]
        models = {"models": [teacher.ref, STUDENT], "train": "probe_train", "data": "probe"}
        stages += [{"kind": kind, "name": kind.rpartition(".")[2], **models} for kind in EVALUATIONS]
    name = start.name if start else given.student
    record = {"description": f"{name} learns {given.teacher.name}'s features of masked patches.", "stages": stages}
    return dump(record)
