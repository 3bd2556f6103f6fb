"""A data set by its path alone: what lies there, by which stage it comes in, and what there is to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from vfm.artifacts import ChoiceDataset
from vfm.config import UserError
from vfm.data import files
from vfm.flow.evaluation.parts import Fields, Part, data_part, saved, split_name, stage_name
from vfm.stage import Stage

TESTS = ("test", "val", "validation")
FOLDER_KINDS = {"multilabel": "data.tagged", "retrieval": "data.pairs"}
CHOICES: Mapping[str, list[str]] = {"choices": []}


@dataclass(frozen=True)
class JudgedSet:
    """A data set to judge on, and what is asked of it.

    train: images to learn from, for probes and neighbours.
    languages: of the captions, a task in each; none: the first.
    scores: by task the metrics whose mean is its score; none: every task that fits, by its main metric.
    settings: fields of its evaluations.
    """

    data: Part
    train: Part | None = None
    languages: tuple[str, ...] = ()
    title: str = ""
    group: str = ""
    scores: Mapping[str, list[str]] = field(default_factory=dict)
    settings: Fields = field(default_factory=dict)


def set_at(word: str, known: Mapping[str, type[Stage]], train: str | None = None) -> JudgedSet:
    """The data set of `[NAME=]PATH`, where PATH is a saved artifact or a user's files.

    Args:
        word: as it is given.
        known: stage types by kind.
        train: the path of what to learn from; default: what lies beside, as `train`.

    Raises:
        UserError: nothing is there that can be read.
    """
    name, path = split_name(word)
    learn = _to_learn_from(train, known) if train else None
    if artifact := saved(path):
        scores = _choice_scores(artifact) if isinstance(artifact, ChoiceDataset) else {}
        return JudgedSet(Part(path, type(artifact), called=name or ""), learn, scores=scores)
    fields, beside = fields_at(path)
    name = name or stage_name(Path(path.rstrip("/")).name.removesuffix(".tar"))
    if learn is None and beside:
        learn = data_part(f"{name}-train", beside, known)
    scores = {} if fields["kind"] != "data.choices" or _is_mmvp(path) else CHOICES
    return JudgedSet(data_part(name, fields, known), learn, scores=scores)


def _to_learn_from(path: str, known: Mapping[str, type[Stage]]) -> Part:
    """The training images that a user names: of a folder with splits its `train`, never its `test`."""
    if found := saved(path):
        return Part(path, type(found))
    fields, beside = fields_at(path)
    return data_part(f"{stage_name(Path(path.rstrip('/')).name.removesuffix('.tar'))}-train", beside or fields, known)


def _is_mmvp(path: str) -> bool:
    return files.exists(f"{path.rstrip('/')}/Questions.csv")


def _choice_scores(data: ChoiceDataset) -> Mapping[str, list[str]]:
    """MMVP-VLM's rule is of two images and two statements, each of which has its image; other items have another."""
    from vfm.data.choices import load_choices

    first = next(load_choices(data), None)
    return {} if first and (len(first.images), sorted(first.truth)) == (2, [0, 1]) else CHOICES


def fields_at(path: str) -> tuple[Fields, Fields | None]:
    """The stage by which a path's data come in, and that of the training images beside them.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    from vfm.data.benchmark_folder import benchmark_shards, splits_of, type_beside

    root = path.rstrip("/")
    if files.is_directory(root):
        splits = splits_of(root)
        split = next((one for one in TESTS if one in splits), splits[0] if splits else "test")
        if shards := benchmark_shards(root, split):
            fields: Fields = {"kind": FOLDER_KINDS.get(type_beside(shards[0]), "data.labeled"), "path": path}
            if fields["kind"] == "data.pairs":
                return {**fields, "path": f"{root}/{split}" if splits else path}, None
            train = {**fields, "split": "train"} if "train" in splits and split != "train" else None
            return {**fields, **({} if split == "test" else {"split": split})}, train
        if _is_mmvp(root):
            return {"kind": "data.choices", "path": path}, None
        if test := next((one for one in TESTS if files.is_directory(f"{root}/{one}")), None):
            train = _fields(f"{root}/train") if files.is_directory(f"{root}/train") else None
            return _fields(f"{root}/{test}"), train
    return _fields(path), None


def _fields(path: str) -> Fields:
    from vfm.data.layout import LABEL_COLUMNS, find_layout
    from vfm.data.table import CAPTION_COLUMNS, table_columns

    if _holds_choices(path):
        return {"kind": "data.choices", "path": path}
    layout = find_layout(path, "auto", None)
    first = layout.paths[0]
    if layout.kind == "folder":
        kind = "data.labeled" if _in_class_folders(first) else "data.pairs"
    elif layout.kind == "webdataset":
        kind = _kind_of_tar(first)
    else:
        columns = table_columns(first)
        captions = any(name in columns for name in CAPTION_COLUMNS)
        kind = "data.labeled" if not captions and any(name in columns for name in LABEL_COLUMNS) else "data.pairs"
    return {"kind": kind, "path": path}


def _holds_choices(path: str) -> bool:
    """Whether a path is of caption choice: SugarCrepe's JSON or a folder of it, Winoground's, items of one's own."""
    from vfm.data.choice_formats import WINOGROUND
    from vfm.data.table import table_columns

    if path.endswith(".jsonl"):
        first = files.read_bytes(path, 0, 1 << 16).decode(errors="replace").partition("\n")[0]
        return '"statements"' in first or all(f'"{name}"' in first for name in WINOGROUND)
    if path.endswith(".parquet"):
        return set(WINOGROUND) <= set(table_columns(path))
    if files.is_directory(path):
        names = list(islice(files.walk(path), 8))
        return bool(names) and all(name.endswith(".json") for name in names)
    return path.endswith(".json")


def _in_class_folders(folder: str) -> bool:
    """Whether the first image lies in a subfolder, and no caption beside it."""
    from vfm.data.folder import image_names

    first = image_names(folder)[0]
    return "/" in first and not files.exists(f"{folder.rstrip('/')}/{first.rpartition('.')[0]}.txt")


def _kind_of_tar(path: str) -> str:
    from vfm.data.tar_scan import scan_tar
    from vfm.data.webdataset import IMAGE_EXTENSIONS

    slots = {"image": "", "cls": "data.labeled", "npy": "data.tagged", "txt": "data.pairs", "json": "data.pairs"}
    places = scan_tar(path, list(slots), IMAGE_EXTENSIONS, limit=3).places
    there = [kind for slot, kind in enumerate(slots.values()) if kind and (places[:, slot, 0] >= 0).any()]
    if not there:
        raise UserError(f"{path}: neither labels (cls, npy) nor captions (txt, json) beside its images")
    return there[0]
