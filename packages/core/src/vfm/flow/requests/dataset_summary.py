"""Summarize the format, samples, skipped samples and first images of the data at a path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from vfm.base import UserError, did_you_mean, error_text, how_to_install, keep_keys, redacted
from vfm.data import BadSample, DatasetSpec, open_dataset, read_index
from vfm.data.indexing.stages import ImageFiles
from vfm.data.layouts.layout import find_layout
from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.contact_sheet import contact_sheet
from vfm.data.tables.image_columns import IMAGE_COLUMNS
from vfm.data.tables.table import CAPTION_COLUMNS, PATH_COLUMNS, text_columns
from vfm.flow.recognition.tables import NOT_TEXTS
from vfm.flow.requests.data_options import with_data_options
from vfm.flow.requests.dataset_page import dataset_page
from vfm.flow.requests.dataset_statistics import dataset_statistics
from vfm.flow.requests.datasets import import_fields
from vfm.flow.requests.inputs import Fields
from vfm.flow.requests.other_captions import other_captions
from vfm.interfaces import (
    FACTS_FILE,
    Artifact,
    ChoiceDataset,
    Context,
    Event,
    ImageDataset,
    ImagesPanel,
    LabeledDataset,
    PairDataset,
    PanelImage,
    QuestionDataset,
    Stage,
    TaggedImages,
    VideoDataset,
    load_panels,
)
from vfm.storage import files
from vfm.storage.path_patterns import expand_paths

DATASETS = ImageDataset | TaggedImages | ChoiceDataset | QuestionDataset | VideoDataset
NAME = "data"  # name of the stage in its errors
DECODED_BYTES = 1 << 29  # bytes of local files up to which every image is decoded
FALLBACK = "data.images"  # images without captions or labels


@dataclass
class DatasetSummary:
    """A dataset as imported by a stage.

    Attributes:
        fields: Fields of the stage; empty for a saved artifact.
        dataset: The artifact, in the given folder.
        skipped: Number of skipped samples, by reason.
        first: Address of the first skipped sample for each reason; empty for a saved artifact.
        passed_over: The stage that fits the format, and why it cannot import the files; empty if it can.
        num_counted: Number of samples in remote files that were only counted, not read, because the files state their
            number. Bad ones are found later.
        is_decoded: Whether every image was decoded. Of many images only the headers are read.
        not_taken: Text columns of a table that are neither captions nor labels of the dataset, and captions in the json
            of a tar that differ from its txt.
    """

    fields: Fields
    dataset: Artifact
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    passed_over: str = ""
    num_counted: int = 0
    is_decoded: bool = True
    not_taken: list[str] = field(default_factory=list)

    @property
    def has_images(self) -> bool:
        """Whether the samples have images, and are not captions alone."""
        return not isinstance(self.dataset, PairDataset) or open_dataset(self.dataset).index.spec.images

    def statistics(self) -> list[str]:
        """List sizes of images, lengths of captions and copies among the first samples, a line each."""
        if not isinstance(self.dataset, ImageDataset) or not self.has_images:
            return []
        source = open_dataset(self.dataset)
        if any(files.is_remote(shard.path) for shard in source.index.shards[:1]):
            return []  # each image is a request
        return list(dataset_statistics(source).lines(self._class_names))

    def page(self, title: str, lines: Iterable[str]) -> str:
        """Write an HTML page to browse the first samples.

        Raises:
            UserError: If the samples are not images with captions or one class each.
        """
        if not isinstance(self.dataset, ImageDataset) or not self.has_images:
            raise UserError(f"--page: expected images with captions or labels, got a {type(self.dataset).__name__}")
        skipped = [f"skipped: {count:,} {reason}" for reason, count in self.skipped.most_common()]
        return dataset_page(redacted(title), [*lines, *skipped], open_dataset(self.dataset), self._class_names)

    @property
    def _class_names(self) -> list[str]:
        return self.dataset.class_names if isinstance(self.dataset, LabeledDataset) else []

    def sheet(self, count: int) -> Image.Image | None:
        """Draw the first images with their captions on one sheet, if the stage shows images."""
        shown: list[PanelImage] = []
        for panel in load_panels(self.dataset.path):
            if isinstance(panel, ImagesPanel):
                shown += panel.pictures
        opened = [(Image.open(self.dataset.path / image.file), image.caption) for image in shown[:count]]
        return contact_sheet(opened) if opened else None

    def captions(self, count: int) -> list[str]:
        """List the first captions of a dataset without images."""
        if not isinstance(self.dataset, PairDataset) or self.has_images:
            return []
        source = open_dataset(self.dataset)
        captions: list[str] = []
        for number in range(min(len(source), 2 * count)):
            with suppress(BadSample):  # possible in a saved dataset, whose captions were counted but not read
                for texts in source.facts(number).texts.values():
                    captions += texts
        return captions[:count]


def summarize_dataset(
    path: str,
    known: Mapping[str, type[Stage]],
    folder: Path,
    send: Callable[[Event], None],
    *,
    kind: str = "",
    options: Mapping[str, Any] | None = None,
    num_samples: int | None = None,
) -> DatasetSummary:
    """Import a dataset into a folder and summarize it, with any number of bad samples.

    Args:
        path: The user's files, or the folder of a saved artifact. An artifact is not imported again.
        known: Stage types by kind.
        folder: An empty folder for the index and the images.
        send: Receives progress.
        kind: Kind of the stage that imports the dataset. Default: chosen by the files.
        options: Further fields of that stage.
        num_samples: Number of samples to read. Default: all.

    Raises:
        UserError: If the path does not exist, its format is not supported, or none of its samples can be used.
    """
    options = options or {}
    if (Path(path) / FACTS_FILE).is_file():
        if options:
            raise UserError(f"{path}: expected no data-option for a saved dataset, got {', '.join(options)}")
        saved = Artifact.load(path)
        if not isinstance(saved, DATASETS):
            raise UserError(f"{path}: expected a dataset, got a {type(saved).__name__}")
        return DatasetSummary({}, saved, Counter(getattr(saved, "bad_samples", {})))
    if kind and not (kind in known and kind.startswith("data.")):
        kinds = [name for name in known if name.startswith("data.")]
        raise UserError(f"--kind: {kind!r} is not a kind of dataset{did_you_mean(kind, kinds)}")
    fields = {"kind": kind, "path": path} if kind else _fields(path)
    if fields["kind"] not in known:
        raise UserError(f"{path}: needs the stage {fields['kind']}: {how_to_install('vfm-diva')}")
    fields = with_data_options(fields, options, known)
    if num_samples is not None and "num_samples" not in known[fields["kind"]].model_fields:
        raise UserError(f"--limit: {fields['kind']} reads all samples; leave it out")
    try:
        return import_summary(fields, known, folder, send, num_samples)
    except UserError as error:
        if kind or options or fields["kind"] == FALLBACK:
            raise
        # No sample fits the stage, such as a folder without captions. Import only the images.
        try:
            summary = import_summary({"kind": FALLBACK, "path": path}, known, folder, send, num_samples)
        except UserError as problem:  # of the images, unless their column was recognised
            raise (error if "image_key" in fields else problem) from None
        summary.passed_over = f"{fields['kind']}: {str(error).removeprefix(f'{NAME}: ')}"
        return summary


def _fields(path: str) -> Fields:
    try:
        return import_fields(path)[0]
    except UserError:
        find_layout(path, "auto", None)  # raises if there are no images
        return {"kind": FALLBACK, "path": path}


def import_summary(
    fields: Fields, known: Mapping[str, type[Stage]], folder: Path, send: Callable[[Event], None], limit: int | None
) -> DatasetSummary:
    """Run the stage with these fields in a folder, with any number of bad samples.

    Args:
        fields: Fields of the stage.
        known: Stage types by kind.
        folder: An empty folder for the index and the images.
        send: Receives progress.
        limit: Number of samples to read.

    Raises:
        UserError: If a field is wrong, or no sample can be used.
    """
    allowed = known[fields["kind"]].model_fields
    remote = files.is_remote(fields["path"])  # it may have millions of samples, so a known count is trusted
    decoded = not remote and (limit is not None or _num_bytes(fields["path"]) <= DECODED_BYTES)
    verify: bool | str = "decode" if decoded else "all"
    if remote:
        verify = True
    supported = keep_keys({"max_bad_fraction": 1.0, "num_samples": limit, "verify": verify}, allowed)
    try:
        stage = known[fields["kind"]].model_validate({**fields, "name": NAME, **supported})
    except ValidationError as error:  # a kind without a path, or with other required fields
        start = f"--kind {fields['kind']}: "
        raise UserError(error_text(error, known[fields["kind"]], start)) from None
    first: dict[str, str] = {}

    def remember(event: Event) -> None:
        if event.type == "bad_sample":
            first.setdefault(event.data["reason"], event.data["where"])
        send(event)

    context = Context(NAME, folder, folder, {}, remember)
    dataset = stage.run(context)
    summary = DatasetSummary(fields, dataset, context.bad, first)
    if isinstance(stage, ImageFiles) and isinstance(dataset, ImageDataset):
        index = read_index(dataset.path)
        summary.num_counted = index.num_counted if remote else 0
        summary.is_decoded = decoded or remote
        layout = find_layout(fields["path"], "auto", None, fields.get("split"))
        if layout.kind in ("table", "parquet"):
            summary.not_taken = _not_taken(layout.paths[0], isinstance(dataset, PairDataset), index.spec)
        elif layout.kind == "webdataset" and list(index.spec.texts.values()) == ["txt"]:
            summary.not_taken = other_captions(layout.paths[0])
    return summary


def _num_bytes(path: str | Sequence[str]) -> int:
    """Count the bytes of the local files at a path, or more than `DECODED_BYTES` if they are many."""
    count = 0
    for root in expand_paths(path):
        names = (f"{root}/{name}" for name in files.walk(root)) if os.path.isdir(root) else iter([root])
        for name in names:
            count += os.path.getsize(name) if os.path.isfile(name) else 0
            if count > DECODED_BYTES:
                return count
    return count


def _not_taken(path: str, has_captions: bool, spec: DatasetSpec) -> list[str]:
    """List the text columns of a table that are not used as images, captions, labels or keys."""
    columns = text_columns(path)
    captions = [name for name in CAPTION_COLUMNS if name in columns][:has_captions]
    taken = {*IMAGE_COLUMNS, *PATH_COLUMNS, *NOT_TEXTS, *captions, *columns_of(spec.texts.values())}
    return [name for name in columns if name not in {*taken, *spec.columns, spec.image_key, spec.label_key}]
