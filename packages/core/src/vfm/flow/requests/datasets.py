"""Choose the stage that imports a dataset from its path, and find the training images next to it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.data.choices.choices import load_choices
from vfm.data.layouts.coco_captions import caption_files
from vfm.data.layouts.layout import find_layout
from vfm.data.prompts.clip_benchmark import benchmark_shards, splits_of, type_beside
from vfm.data.tables.hub_files import DEFAULT, TEST_SPLITS, TRAIN, by_split, exact_pattern, tables_in
from vfm.flow.recognition.annotations import annotated_fields, validation_fields
from vfm.flow.recognition.formats import recognise, split_at
from vfm.flow.requests.data_options import with_data_options
from vfm.flow.requests.inputs import Fields, Input, dataset_input, saved_artifact, split_name, stage_name
from vfm.flow.requests.other_captions import other_captions
from vfm.interfaces import ChoiceDataset, Stage
from vfm.storage import files

FOLDER_KINDS = {"multilabel": "data.tagged", "retrieval": "data.pairs"}  # by dataset type of clip_benchmark
IMAGES = "data.images"
LABELED = "data.labeled"
WITH_IMAGES = ("data.pairs", LABELED)
IMAGE_FIELDS = ("image_key", "image_root")
CHOICES: Mapping[str, list[str]] = {"choices": []}


@dataclass(frozen=True)
class EvaluationDataset:
    """A dataset, and the tasks and metrics of its evaluation.

    Attributes:
        data: The test images.
        train: Training images for probes and kNN.
        languages: Languages of the captions, each evaluated separately. Empty: the first.
        title: Name in tables. Empty: name of the data.
        group: Name of a group of datasets whose scores are averaged.
        scores: Metrics of each task whose mean is the score. Empty: every task that fits, by its main metric.
        settings: Fields of its evaluation stages.
    """

    data: Input
    train: Input | None = None
    languages: tuple[str, ...] = ()
    title: str = ""
    group: str = ""
    scores: Mapping[str, list[str]] = field(default_factory=dict)
    settings: Fields = field(default_factory=dict)


def dataset_at(
    word: str, known: Mapping[str, type[Stage]], train: str | None = None, options: Mapping[str, Any] | None = None
) -> EvaluationDataset:
    """Resolve a dataset that a user names as `[NAME=]PATH`.

    The path is a saved artifact or the user's files.

    Args:
        word: The user's argument.
        known: Stage types by kind.
        train: Path of training images. Default: the folder or split `train` next to the data.
        options: Further fields of the stages that import the data and the training images.

    Raises:
        UserError: If the path does not exist, or has no supported format, or the options do not fit.
    """
    options = options or {}
    name, path = split_name(word)
    training = _training_images(train, known, options) if train else None
    artifact = saved_artifact(path)
    if artifact:
        if options:
            raise UserError(f"{path}: expected no data-option for a saved dataset, got {', '.join(options)}")
        scores = _choice_scores(artifact) if isinstance(artifact, ChoiceDataset) else {}
        return EvaluationDataset(Input(path, type(artifact), given_name=name or ""), training, scores=scores)
    fields, train_fields = import_fields(path)
    fields = with_data_options(fields, options, known)
    _check_one_caption(fields)
    name = name or stage_name(Path(path.rstrip("/")).name.removesuffix(".tar"))
    if training is None and train_fields:
        training = dataset_input(f"{name}-train", with_data_options(train_fields, options, known), known)
    scores = {} if fields["kind"] != "data.choices" or _is_mmvp(path) else CHOICES
    return EvaluationDataset(dataset_input(name, fields, known), training, scores=scores)


def _check_one_caption(fields: Fields) -> None:
    """Check that a tar has no second caption, with which retrieval would be a different task.

    Raises:
        UserError: If its samples have captions in `txt` and others in `json`, and no option chooses between them.
    """
    if fields["kind"] != "data.pairs" or fields.get("texts"):
        return
    layout = find_layout(fields["path"], "auto", fields.get("image_root"))
    others = other_captions(layout.paths[0]) if layout.kind == "webdataset" else []
    if others:
        choices = " or ".join(f"--data-option texts.en={location}" for location in ("txt", *others))
        raise UserError(f"{layout.paths[0]}: captions in txt differ from {', '.join(others)}; choose {choices}")


def _training_images(path: str, known: Mapping[str, type[Stage]], options: Mapping[str, Any]) -> Input:
    """Resolve the training images that a user names. A folder with splits means its `train`, never its `test`."""
    artifact = saved_artifact(path)
    if artifact:
        return Input(path, type(artifact))
    fields, train_fields = import_fields(path)
    name = stage_name(Path(path.rstrip("/")).name.removesuffix(".tar"))
    return dataset_input(f"{name}-train", with_data_options(train_fields or fields, options, known), known)


def _is_mmvp(path: str) -> bool:
    return files.exists(f"{path.rstrip('/')}/Questions.csv")


def _choice_scores(data: ChoiceDataset) -> Mapping[str, list[str]]:
    """Choose the tasks of a saved dataset of choices.

    The rule of MMVP-VLM applies to two images and two statements, one for each image. Other items have their own rule.
    """
    first = next(load_choices(data), None)
    if first and len(first.images) == 2 and sorted(first.truth) == [0, 1]:
        return {}
    return CHOICES


def import_fields(path: str) -> tuple[Fields, Fields | None]:
    """Choose the fields of the stage that imports a path, and of the stage for training images next to it.

    Raises:
        UserError: If the path does not exist, or has no supported format.
    """
    root = path.rstrip("/")
    if files.is_directory(root):
        splits = splits_of(root)
        fallback = splits[0] if splits else DEFAULT
        split = next((name for name in TEST_SPLITS if name in splits), fallback)
        shards = benchmark_shards(root, split)
        if shards:
            fields: Fields = {"kind": FOLDER_KINDS.get(type_beside(shards[0]), LABELED), "path": path}
            if fields["kind"] == "data.pairs":
                return {**fields, "path": f"{root}/{split}" if splits else path}, None
            if TRAIN in splits and split != TRAIN:
                train = {**fields, "split": TRAIN}
            else:
                train = None
            return fields if split == DEFAULT else {**fields, "split": split}, train
        if _is_mmvp(root):
            return {"kind": "data.choices", "path": path}, None
    annotated = annotated_fields(path)
    if annotated:
        train = {"kind": "data.annotated", **annotated}
        val = validation_fields(train)
        return (val, train) if val else (train, None)
    if files.is_directory(root):
        folders = [name for name in (*TEST_SPLITS, TRAIN) if files.is_directory(f"{root}/{name}")]
        if folders:
            train = recognise(f"{root}/{TRAIN}") if TRAIN in folders[1:] else None
            return recognise(f"{root}/{folders[0]}"), train
        shards = _shards_of_splits(root) or _captions_of_splits(root)
        if len(shards) > 1:
            return recognise(shards[0]), recognise(shards[1])
    return recognise(path), None


def fields_for(kind: str, path: str) -> Fields:
    """Choose the fields of a stage of this kind for a path, with the columns that are recognised."""
    with suppress(UserError):  # reported with its line when the recipe is checked
        fields = recognise(path)
        if fields["kind"] == kind:
            return fields
        if kind == IMAGES and fields["kind"] in WITH_IMAGES:  # its captions or labels are not needed
            return {"kind": kind, "path": path, **{name: fields[name] for name in IMAGE_FIELDS if name in fields}}
    return {"kind": kind, "path": path, **(split_at(path) if kind == LABELED else {})}


def _captions_of_splits(folder: str) -> list[str]:
    """List COCO's captions of a validation split, and of the training split."""
    paths = caption_files(folder, files.names_in(folder))
    val = [path for path in paths if "train" not in path.rpartition("/")[2]]
    return [*val, *(path for path in paths if path not in val)] if len(paths) == 2 and len(val) == 1 else []


def _shards_of_splits(folder: str) -> list[str]:
    """List a pattern for the Parquet files of the test split in a folder, and of `train`, if they are its data."""
    splits = by_split(tables_in(folder, files.names_in(folder)))
    test = next((name for name in TEST_SPLITS if name in splits), None)
    if not test or TRAIN not in splits or find_layout(folder, "auto", None, test).paths != splits[test]:
        return []
    return [exact_pattern(splits[test]), exact_pattern(splits[TRAIN])]
