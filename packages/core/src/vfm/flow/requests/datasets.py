"""Datasets of an evaluation, from a path alone: the stage that imports it, and the training images next to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.data.choices.choices import load_choices
from vfm.data.choices.pair_benchmarks import PAIR_COLUMNS
from vfm.data.layouts.coco_captions import is_coco_captions
from vfm.data.layouts.folder import image_names
from vfm.data.layouts.layout import LABEL_COLUMNS, find_layout
from vfm.data.prompts.clip_benchmark import benchmark_shards, splits_of, type_beside
from vfm.data.samples.images import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from vfm.data.tables.table import CAPTION_COLUMNS, table_columns
from vfm.data.tar.scan import scan_tar
from vfm.flow.requests.data_options import with_data_options
from vfm.flow.requests.inputs import (
    Fields,
    Input,
    dataset_input,
    saved_artifact,
    split_name,
    stage_name,
)
from vfm.flow.requests.other_captions import other_captions
from vfm.interfaces import ChoiceDataset, Stage
from vfm.storage import files

TEST_SPLITS = ("test", "val", "validation")
FOLDER_KINDS = {"multilabel": "data.tagged", "retrieval": "data.pairs"}  # by dataset type of clip_benchmark
CHOICES: Mapping[str, list[str]] = {"choices": []}


@dataclass(frozen=True)
class EvaluationDataset:
    """A dataset, and the tasks and metrics of its evaluation.

    Attributes:
        data: the test images.
        train: training images for probes and kNN.
        languages: languages of the captions, each evaluated separately; empty: the first.
        title: name in tables; empty: name of the data.
        group: name of a group of datasets whose scores are averaged.
        scores: metrics of each task whose mean is the score; empty: every task that fits, by its main metric.
        settings: fields of its evaluation stages.
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
    """Resolve a dataset that a user names as `[NAME=]PATH`: a saved artifact or the user's files.

    Args:
        word: the user's argument.
        known: stage types by kind.
        train: path of training images; default: the folder or split `train` next to the data.
        options: further fields of the stages that import the data and the training images.

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
    """Check that a tar has no second caption, which would be another task than the one that is scored.

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
        fallback = splits[0] if splits else "test"
        split = next((name for name in TEST_SPLITS if name in splits), fallback)
        shards = benchmark_shards(root, split)
        if shards:
            fields: Fields = {"kind": FOLDER_KINDS.get(type_beside(shards[0]), "data.labeled"), "path": path}
            if fields["kind"] == "data.pairs":
                return {**fields, "path": f"{root}/{split}" if splits else path}, None
            train = {**fields, "split": "train"} if "train" in splits and split != "train" else None
            return fields if split == "test" else {**fields, "split": split}, train
        if _is_mmvp(root):
            return {"kind": "data.choices", "path": path}, None
        test = next((name for name in TEST_SPLITS if files.is_directory(f"{root}/{name}")), None)
        if test:
            train = _fields(f"{root}/train") if files.is_directory(f"{root}/train") else None
            return _fields(f"{root}/{test}"), train
    return _fields(path), None


def _fields(path: str) -> Fields:
    """Choose the fields of the stage that imports files without splits."""
    if _holds_videos(path):
        return {"kind": "data.videos", "path": path}
    if _holds_choices(path):
        return {"kind": "data.choices", "path": path}
    layout = find_layout(path, "auto", None)
    first = layout.paths[0]
    if layout.kind == "folder":
        kind = "data.labeled" if _in_class_folders(first) else "data.pairs"
    elif layout.kind == "webdataset":
        kind = _kind_of_tar(first)
    elif layout.kind == "coco":
        kind = "data.pairs"
    else:
        columns = table_columns(first)
        captions = any(name in columns for name in CAPTION_COLUMNS)
        labels = any(name in columns for name in LABEL_COLUMNS)
        kind = "data.labeled" if labels and not captions else "data.pairs"
    return {"kind": kind, "path": path}


def _holds_videos(path: str) -> bool:
    """Check whether a folder or a tar has videos among its first files."""
    if path.endswith(".tar") and files.exists(path):
        return bool((scan_tar(path, ["image"], VIDEO_EXTENSIONS, limit=3).places[:, 0, 0] >= 0).any())
    if not files.is_directory(path):
        return False
    return any(name.lower().endswith(VIDEO_EXTENSIONS) for name in islice(files.walk(path), 8))


def _holds_choices(path: str) -> bool:
    """Check whether a path holds caption choices, in a format of `data.choices`."""
    if path.endswith(".jsonl"):
        first = files.read_bytes(path, 0, 1 << 16).decode(errors="replace").partition("\n")[0]
        return '"statements"' in first or any(all(f'"{name}"' in first for name in names) for names in PAIR_COLUMNS)
    if path.endswith(".parquet"):
        columns = set(table_columns(path))
        return any(columns.issuperset(names) for names in PAIR_COLUMNS)
    if files.is_directory(path):
        if files.exists(f"{path}/metadata.json") and files.is_directory(f"{path}/images"):  # NaturalBench-Retrieval
            return True
        names = list(islice(files.walk(path), 8))
        return bool(names) and all(name.endswith(".json") for name in names)
    return path.endswith(".json") and not is_coco_captions(path)


def _in_class_folders(folder: str) -> bool:
    """Check whether the first image is in a subfolder, without a caption next to it."""
    first = image_names(folder)[0]
    return "/" in first and not files.exists(f"{folder.rstrip('/')}/{first.rpartition('.')[0]}.txt")


def _kind_of_tar(path: str) -> str:
    """Choose the kind of stage that imports a WebDataset tar, from the files next to its first images."""
    slots = {"image": "", "cls": "data.labeled", "npy": "data.tagged", "txt": "data.pairs", "json": "data.pairs"}
    places = scan_tar(path, list(slots), IMAGE_EXTENSIONS, limit=3).places
    kinds = [kind for slot, kind in enumerate(slots.values()) if kind and (places[:, slot, 0] >= 0).any()]
    if not kinds:
        raise UserError(f"{path}: its images have neither labels (cls, npy) nor captions (txt, json)")
    return kinds[0]
