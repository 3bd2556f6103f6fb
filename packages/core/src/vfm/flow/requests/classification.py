"""Write the recipe of `vfm classify`, with a probe, neighbours or fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vfm.base import UserError, did_you_mean, how_to_install
from vfm.data.labeled.class_names import common_class_names
from vfm.data.layouts.layout import Layout, find_layout
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.data_options import with_data_options
from vfm.flow.requests.datasets import fields_for, import_fields
from vfm.flow.requests.finetuning import Classification
from vfm.flow.requests.inputs import Fields, Input, named_apart, saved_artifact
from vfm.interfaces import LabeledDataset, Stage, VisionCheckpoint

EVALUATIONS = {"probe": "eval.linear_probe", "knn": "eval.knn", "finetune": "eval.classify"}
ZERO_SHOT = ("zero_shot", "zeroshot")  # what users may ask for, and another command does
FINETUNE = "eva.finetune"
CLASSIFIER, TRAIN, VAL = "classifier", "train", "val"  # names in the recipe


def classification_recipe(request: Classification, known: Mapping[str, type[Stage]]) -> str:
    """Write the recipe as YAML.

    Raises:
        UserError: If there is no such method, the images have no labels or other classes than the training images, or
            the model does not fit.
    """
    if request.method.replace("-", "_") in ZERO_SHOT:
        command = f"vfm eval MODEL --data {request.val or request.train} --tasks zero_shot"
        raise UserError(f"--method: zero-shot classification trains nothing: {command}")
    if request.method not in EVALUATIONS:
        hint = did_you_mean(request.method, EVALUATIONS)
        raise UserError(f"--method: expected one of {', '.join(EVALUATIONS)}, got {request.method!r}{hint}")
    if request.method == "finetune" and FINETUNE not in known:
        raise UserError(f"--method finetune needs the stage {FINETUNE}: {how_to_install('vfm-eva')}")
    if request.method == "finetune" and not issubclass(request.model.makes, VisionCheckpoint):
        raise UserError(f"--method finetune: expected an encoder of timm, got the CLIP model {request.model.name}")
    model = named_apart(request.model, (CLASSIFIER, TRAIN, VAL), "encoder")
    stages: list[Fields] = [model.stage] if model.stage else []
    refs = _add_datasets(stages, request, known)
    if VAL not in refs and request.method != "finetune":
        raise UserError(f"{request.train}: has no val or test; give the images to evaluate on: --val PATH")
    evaluated = model.ref
    if request.method == "finetune":
        stages.append(_finetuning(request, model, refs[TRAIN]))
        evaluated = CLASSIFIER
    if VAL in refs:
        kind = EVALUATIONS[request.method]
        inputs = {} if request.method == "finetune" else {"train": refs[TRAIN]}
        stages.append({"kind": kind, "name": "accuracy", "models": [evaluated], **inputs, "data": refs[VAL]})
    about = f"{request.model.name} as a classifier of {request.train}, by {request.method}."
    return dump({"description": about, "stages": stages})


def _finetuning(request: Classification, model: Input, train: str) -> Fields:
    return {
        "kind": FINETUNE,
        "name": CLASSIFIER,
        "encoder": model.ref,
        "data": train,
        "epochs": request.epochs,
        "global_batch_size": request.batch,
        "lr": request.lr,
    }


def _add_datasets(stages: list[Fields], request: Classification, known: Mapping[str, type[Stage]]) -> dict[str, str]:
    """Add the stages that import the images, with the classes of both, and name them."""
    train, val = _fields(request.train, request.val, request.data_options, known)
    imported: dict[str, Fields] = {}
    refs = {}
    for name, value in ((TRAIN, train), (VAL, val)):
        if isinstance(value, dict):
            imported[name] = value
            refs[name] = name
        elif isinstance(value, str):
            refs[name] = value
    names = _class_names(list(imported.values()))
    for name, value in imported.items():
        more = {"class_names": names} if names else {}
        stages.append({"kind": "data.labeled", "name": name, **value, **more})
    return refs


def _fields(
    train: str, val: str, options: Mapping[str, Any], known: Mapping[str, type[Stage]]
) -> tuple[Fields | str, Fields | str | None]:
    """Choose the fields of the stages that import both sets, or the path of a saved dataset."""
    if saved_artifact(train):
        if saved_artifact(val):
            return _saved(train), _saved(val)
        return _saved(train), _labeled(val, options, known) if val else None
    of_val, of_train = import_fields(train)
    if not val and of_train:
        return _checked(of_train, options, known), _checked(of_val, options, known)
    chosen = _checked(of_train or of_val, options, known)
    if not val:
        return chosen, None
    return chosen, _saved(val) if saved_artifact(val) else _labeled(val, options, known)


def _labeled(path: str, options: Mapping[str, Any], known: Mapping[str, type[Stage]]) -> Fields:
    return with_data_options(fields_for("data.labeled", path), options, known)


def _saved(path: str) -> str:
    artifact = saved_artifact(path)
    if not isinstance(artifact, LabeledDataset):
        raise UserError(f"{path}: expected labelled images, got a {type(artifact).__name__}")
    return path


def _checked(fields: Fields, options: Mapping[str, Any], known: Mapping[str, type[Stage]]) -> Fields:
    """Check that files have labels.

    Raises:
        UserError: If they have captions or nothing next to the images.
    """
    labelled = with_data_options(fields, options, known)
    if labelled["kind"] != "data.labeled":
        raise UserError(
            f"{fields['path']}: expected labelled images (class folders, tars with cls, a table with a column label),"
            f" got {fields['kind']}; name the column of the labels: --data-option label_key=COLUMN"
        )
    return labelled


def _class_names(datasets: list[Fields]) -> list[str]:
    """Find the classes of both sets, if they must be given.

    They must be if they differ, or are numbers without names.

    Raises:
        UserError: If the second set has a class that the first lacks.
    """
    if not datasets or any("class_names" in fields for fields in datasets):
        return []
    return common_class_names([(layout_of(fields), fields.get("label_key")) for fields in datasets])


def layout_of(fields: Fields) -> Layout:
    """Find the layout of the files that a stage with these fields imports."""
    return find_layout(fields["path"], "auto", fields.get("image_root"), fields.get("split"))
