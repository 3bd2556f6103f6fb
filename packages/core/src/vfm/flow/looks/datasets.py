"""Inspect a dataset by importing its first samples, and choose the commands that train on it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vfm.base import UserError, how_to_install
from vfm.data.labeled.class_names import common_class_names
from vfm.data.layouts.layout import find_layout
from vfm.data.tables.table import table_columns
from vfm.flow.looks.facts import Look
from vfm.flow.recipe.yaml_lines import flow_text
from vfm.flow.recognition.image_names import image_root
from vfm.flow.requests.classification import layout_of
from vfm.flow.requests.dataset_summary import FALLBACK, DatasetSummary, import_summary
from vfm.flow.requests.datasets import import_fields
from vfm.flow.requests.inputs import Fields
from vfm.interfaces import Event, Stage

NUM_SAMPLES = 1000  # samples that are read
NUM_CLASSES = 10  # class names that are shown
CONTENTS = {
    "data.pairs": "image-caption pairs",
    "data.labeled": "labelled images",
    "data.tagged": "images with several labels each",
    "data.images": "images",
    "data.annotated": "images with boxes, masks or label maps",
    "data.videos": "videos with classes",
    "data.choices": "images with statements to choose from",
    "mllm.questions": "questions about images",
}
LAYOUTS = {"webdataset": "tars", "folder": "a folder", "table": "a table", "parquet": "Parquet", "coco": "COCO's json"}
# Models and recipes of the commands.
CLIP = "ViT-B-32,openai"
ENCODER = "vit_small_patch16_224.augreg_in21k_ft_in1k"
TEACHER = "vit_base_patch14_dinov2.lvd142m"
STUDENT = "vit_small_patch16_224"
RECIPES = {"data.annotated": "boxes", "data.videos": "actions", "mllm.questions": "questions"}


def look_at_data(path: str, known: Mapping[str, type[Stage]], folder: Path, send: Callable[[Event], None]) -> Look:
    """Import the first samples of a dataset into a folder, and describe them.

    Args:
        path: The user's path.
        known: Stage types by kind.
        folder: An empty folder.
        send: Receives progress.

    Raises:
        UserError: If the path has no supported format.
    """
    val, train = _recognised(path)
    fields = train or val
    look = Look(CONTENTS[fields["kind"]])
    if fields["kind"] not in known:
        look.problems.append(f"needs the stage {fields['kind']}: {how_to_install('vfm-diva')}")
        return look
    cures = _cures(fields, look)
    if fields["kind"] == "data.labeled":
        names = common_class_names([(layout_of(fields), fields.get("label_key"))])
        if names:
            fields = {**fields, "class_names": names}
            look.facts.append("the labels are numbers without names; for zero-shot give --data-option class_names=FILE")
    summary = _summary({**fields, **cures}, known, folder, send, look)
    if summary is None:
        return look
    fields = summary.fields
    _describe(look, fields, summary)
    if fields["kind"] == "data.labeled" and len(summary.dataset.model_dump()["class_names"]) == 1:
        look.problems.append(
            "all images have the same class, which cannot be learned; expected a folder for each class"
        )
        return look
    look.commands += training_commands(fields, val if train else None, cures, has_images=summary.has_images)
    return look


def _recognised(path: str) -> tuple[Fields, Fields | None]:
    """Recognise a dataset. Images without captions and labels are a dataset too."""
    try:
        return import_fields(path)
    except UserError:
        find_layout(path, "auto", None)  # raises if there are no images
        return {"kind": FALLBACK, "path": path}, None


def _cures(fields: Fields, look: Look) -> dict[str, Any]:
    """Find the fields that a user must confirm, such as a folder of images outside of the table's folder."""
    if "image_root" in fields or fields["kind"] not in ("data.pairs", "data.labeled", FALLBACK):
        return {}
    layout = find_layout(fields["path"], "auto", None)
    if layout.kind == "table":
        root = image_root(layout.paths[0], fields.get("image_key"))
    else:
        root = None
    if root is None:
        return {}
    look.problems.append(f"paths lead out of the table's folder; --data-option image_root={root} reads them")
    return {"image_root": root}


def _summary(
    fields: Fields, known: Mapping[str, type[Stage]], folder: Path, send: Callable[[Event], None], look: Look
) -> DatasetSummary | None:
    """Import a dataset, or else only its images.

    If neither can be used, this is a problem of the look, and the result is None.
    """
    for name in ("data", "images"):
        (folder / name).mkdir()
    try:
        return import_summary(fields, known, folder / "data", send, NUM_SAMPLES)
    except UserError as error:
        about = str(error).removeprefix("data: ")
        if fields["kind"] == "data.pairs" and "missing_caption" in about:
            look.facts.append("no captions")
        else:
            look.problems.append(about)
    if fields["kind"] not in ("data.pairs", "data.labeled"):
        return None
    only_images = {"kind": FALLBACK, "path": fields["path"]}
    try:
        summary = import_summary(only_images, known, folder / "images", send, NUM_SAMPLES)
    except UserError:
        return None
    look.format = CONTENTS[FALLBACK]
    return summary


def _describe(look: Look, fields: Fields, summary: DatasetSummary) -> None:
    facts = summary.dataset.model_dump(mode="json")
    count = facts.get("num_samples", facts.get("num_questions", 0))
    # Only the first samples are read for a look, so their number is a lower bound.
    first = "the first " if count == NUM_SAMPLES else ""
    look.facts.append(f"samples: {first}{count:,}")
    if fields["kind"] in ("data.pairs", "data.labeled", FALLBACK):
        layout = find_layout(fields["path"], "auto", None)
        shards = f" ({len(layout.paths):,} files)" if len(layout.paths) > 1 else ""
        look.format += f" in {LAYOUTS.get(layout.kind, layout.kind)}{shards}"
        if layout.kind in ("table", "parquet"):
            look.facts.append(f"columns: {', '.join(table_columns(layout.paths[0]))}")
    elif facts.get("format"):
        look.format += f", format {facts['format']}"
    names = facts.get("class_names") or []
    if names:
        more = ", ..." if len(names) > NUM_CLASSES else ""
        look.facts.append(f"classes: {len(names):,} ({', '.join(map(str, names[:NUM_CLASSES]))}{more})")
    for key in ("languages", "labels"):
        if facts.get(key):
            look.facts.append(f"{key}: {', '.join(facts[key])}")
    for reason, number in summary.skipped.most_common():
        if reason in summary.first:
            where = f"; the first is {summary.first[reason]}"
        else:
            where = ""
        look.problems.append(f"skipped: {number:,} {reason}{where}")
    if summary.not_taken:
        look.facts.append(f"text that is not read: {', '.join(summary.not_taken)}")


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
