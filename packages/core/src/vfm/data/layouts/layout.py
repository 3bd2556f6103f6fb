"""Find the layout of a user's files, such as tars, a folder of images, or a table of paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow as pa

from vfm.base import UserError
from vfm.data.layouts.coco_captions import CAPTION, captions_in_folder, coco_entries, is_coco_captions
from vfm.data.layouts.folder import caption_folder, class_folders, image_folder, image_names
from vfm.data.layouts.folder_listing import shards_in_folder
from vfm.data.ledger.account import Account, Unit
from vfm.data.prompts.clip_benchmark import CLASS_NAMES_FILE, benchmark_shards, lines_beside, type_beside
from vfm.data.samples.caption_templates import columns_of, is_template, locations_in
from vfm.data.samples.shards import Found, ShardReader, UnreadShard, format_of_file, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.arrow_files import saved_dataset
from vfm.data.tables.fiftyone_labels import LABELS_FILE, is_fiftyone_labels
from vfm.data.tables.hub_files import DEFAULT, are_about_folders, tables_in, tables_of_split
from vfm.data.tables.image_columns import IMAGE_COLUMNS, is_bytes
from vfm.data.tables.image_list import ImageEntry, write_image_lists
from vfm.data.tables.parquet_files import open_parquet, schema_names
from vfm.data.tables.table import (
    CAPTION_COLUMNS,
    FIFTYONE,
    LIST_EXTENSION,
    PATH_COLUMNS,
    TABLE_EXTENSIONS,
    find_column,
    lists_captions,
    table_columns,
    table_entries,
    table_kind,
    unit_of_table,
)
from vfm.storage import files
from vfm.storage.credentials import check_addresses
from vfm.storage.path_patterns import expand_paths

Kind = Literal["webdataset", "folder", "table", "parquet", "coco"]
METADATA_STEMS = ("metadata", "captions", "annotations", "labels")
UNITS: dict[str, Unit] = {"folder": "entries", "coco": "records"}
LABEL_COLUMNS = ("label", "cls", "class", "category", "target")


@dataclass(frozen=True)
class Layout:
    """The files behind a path, and their kind."""

    kind: str  # a `Kind`, or the shard format of a plugin
    paths: list[str]
    image_root: str
    folder: str = ""  # in which the paths were found, unless the user named them

    @property
    def reader(self) -> type[ShardReader] | None:
        """Format of the shards, if they are the user's own files."""
        if self.kind in ("folder", "table", "coco"):
            return None
        return shard_format("tar" if self.kind == "webdataset" else self.kind)

    @property
    def num_shards(self) -> int | None:
        """Number of shards, if they are the user's own files."""
        return len(self.paths) if self.reader else None

    def only_captions(self, image_key: str | None, texts: Mapping[str, str]) -> bool:
        """Check whether the files are tables with captions, but without images or paths of images.

        Args:
            image_key: Column of the images that the user named.
            texts: Columns of the captions that the user named.
        """
        if self.kind not in ("table", "parquet") or image_key or self.image_root:
            return False
        path = self.paths[0]
        if table_kind(path) == LIST_EXTENSION:
            return lists_captions(path)
        columns = set(table_columns(path))
        named = set(columns_of(texts.values()))
        has_captions = named <= columns if named else bool(columns.intersection(CAPTION_COLUMNS))
        if not has_captions or not columns.isdisjoint({*PATH_COLUMNS, *IMAGE_COLUMNS}):
            return False
        if table_kind(path) != "parquet":
            return True
        fields = [field for field in open_parquet(path).schema_arrow if field.name not in ("uid", "key")]
        return not any(is_bytes(field.type) or _has_images(field) for field in fields)

    def with_defaults(self, spec: DatasetSpec, *, labels: bool) -> DatasetSpec:
        """Fill in the default location of the captions (or the labels) if the user gave none."""
        if self.kind == "parquet" and self.image_root:
            spec = spec.model_copy(update={"image_root": _absolute(self.image_root)})
        if labels:
            if spec.label_key or self.kind == "folder":
                return spec
            return spec.model_copy(update={"label_key": self._label_location()})
        if spec.texts:
            return spec.model_copy(update={"value_names": self._value_names(spec.texts.values())})
        return spec.model_copy(update={"texts": {"en": self._caption_location()}})

    def _value_names(self, locations: Iterable[str]) -> dict[str, list[str]]:
        """Find the names of the numbers that templates of captions read, from a `ClassLabel` or a tar's `cls`."""
        path = self.paths[0]
        names = {}
        for location in chain.from_iterable(map(locations_in, filter(is_template, locations))):
            if self.kind == "parquet":
                names[location] = schema_names(path, location)
            elif self.kind == "webdataset" and location == "cls":
                names[location] = lines_beside(path, CLASS_NAMES_FILE)
        return {location: words for location, words in names.items() if words}

    def _label_location(self) -> str:
        path = self.paths[0]
        if self.kind == "coco":
            raise UserError(f"{path}: has captions and no labels: import it as data.pairs")
        if self.kind in ("table", "parquet"):
            return find_column(table_columns(path), None, LABEL_COLUMNS, "label_key", path)
        return "cls"

    def _caption_location(self) -> str:
        path = self.paths[0]
        if self.kind == "coco":
            return CAPTION
        if self.kind in ("table", "parquet"):
            return find_column(table_columns(path), None, CAPTION_COLUMNS, "texts", path)
        is_retrieval = self.kind == "webdataset" and type_beside(path) == "retrieval"
        return "txt.lines" if is_retrieval else "txt"

    def shards(self, directory: Path, spec: DatasetSpec, accounts: list[Account] | None = None) -> Iterator[Found]:
        """Yield the user's files as shards, or write lists of images, whose samples are counted when they are read.

        Args:
            directory: Folder for the lists.
            spec: Parts to read of each sample.
            accounts: Receives the accounts of the files and folders that are listed.

        Raises:
            UserError: If an address has credentials.
        """
        check_addresses([*self.paths, self.image_root])
        reader = self.reader
        if reader:
            if self.folder and not files.is_remote(self.folder) and accounts is not None:
                accounts.append(shards_in_folder(self.folder, self.paths))
            for path in self.paths:
                yield UnreadShard(path, reader)
        else:
            for shard in write_image_lists(directory, self.entries(spec, accounts), spec):
                yield shard, False

    def entries(self, spec: DatasetSpec, accounts: list[Account] | None = None) -> Iterator[ImageEntry]:
        """Yield the images that a folder, a table or COCO's captions list, by absolute paths."""
        number = 0
        for path in map(_absolute, self.paths):
            account = Account(path, UNITS.get(self.kind) or unit_of_table(path), sample=number)
            if accounts is not None:
                accounts.append(account)
            for entry in self._entries_of(path, spec, account):
                account.sample += 1
                yield entry
            number = account.sample

    def _entries_of(self, path: str, spec: DatasetSpec, account: Account) -> Iterator[ImageEntry]:
        if spec.columns and self.kind == "folder":
            raise UserError(f"{self.paths[0]}: columns: expected a table, tars or Parquet, got a folder")
        root = _absolute(self.image_root) if self.image_root else ""
        if self.kind == "coco":
            return coco_entries(path, root, spec, account)
        if self.kind == "table":
            return table_entries(path, root or path.rpartition("/")[0], spec, account)
        if spec.texts and not spec.captions_optional:
            return caption_folder(path, spec, account)
        if spec.class_names:
            return class_folders(path, spec.class_names, account)[1]
        return image_folder(path, spec, account)


def find_layout(
    path: str | Sequence[str], kind: Kind | Literal["auto"], image_root: str | None, split: str | None = None
) -> Layout:
    """Find the layout of a path, by the given kind or by the file names.

    Args:
        path: Path as the user gave it.
        kind: Kind of the files. auto: by their names.
        image_root: Folder that a table's image paths are relative to.
        split: Split of a CLIP_benchmark folder, or of a Hugging Face dataset. None: `test` for CLIP_benchmark, and the
            only split for Hugging Face.

    Raises:
        UserError: If the path does not exist, is not a regular file or folder, or its files cannot be read.
    """
    paths = expand_paths(path)
    missing = files.missing(paths)
    if missing:
        raise UserError(f"{missing[0]}: no such file or folder")
    for file in paths:
        files.check_regular(file)
    folder = ""
    if len(paths) == 1 and files.is_directory(paths[0]) and kind != "folder":
        folder = paths[0]
        paths = _inside(folder, kind, split)
    guessed = _guess(paths) if kind == "auto" else kind
    if guessed != "folder":
        for file in paths:
            if files.is_directory(file):
                raise UserError(f"{file}: expected files of the format {guessed}, got a folder")
    return Layout(guessed, paths, image_root or "", folder)


def _inside(folder: str, kind: Kind | Literal["auto"], split: str | None) -> list[str]:
    """List the tars, the table, the captions, the parquet or Arrow files in a folder, or else the folder itself."""
    # The order matters: img2dataset writes a parquet table next to each tar, and image folders may have a table.
    root = folder.rstrip("/")
    inside: list[str] | None = None
    if kind in ("auto", "webdataset"):
        inside = benchmark_shards(root, split or DEFAULT)
        if inside:
            return inside
    names = files.names_in(folder)
    paths = [f"{root}/{name}" for name in names]
    if kind in ("auto", "webdataset"):
        inside = fnmatch.filter(paths, "*.tar")
    if not inside and kind in ("auto", "table"):
        inside = _metadata_table(root, names) or _fiftyone_labels(root, names)
    if not inside and kind in ("auto", "coco"):
        inside = captions_in_folder(folder, names)
    if not inside and kind in ("auto", "parquet"):
        inside = saved_dataset(folder, names, split)
    if not inside and kind in ("auto", "parquet"):
        tables = tables_in(folder, names)
        if kind == "parquet" or not are_about_folders(tables):
            inside = tables_of_split(folder, tables, split)
    if not inside and kind == "auto":
        inside = [f"{root}/{name}" for name in names if format_of_file(name)]
    return inside or [folder]


def _metadata_table(root: str, names: Sequence[str]) -> list[str]:
    """Find the first table in a folder with a usual name for metadata, as a list."""
    for stem in METADATA_STEMS:
        for extension in TABLE_EXTENSIONS:
            if f"{stem}.{extension}" in names:
                return [f"{root}/{stem}.{extension}"]
    return []


def _fiftyone_labels(root: str, names: Sequence[str]) -> list[str]:
    path = f"{root}/{LABELS_FILE}"
    return [path] if LABELS_FILE in names and is_fiftyone_labels(path) else []


def _guess(paths: Sequence[str]) -> str:
    first = paths[0]
    if files.is_directory(first):
        image_names(first)  # raises if there are no images
        return "folder"
    reader = format_of_file(first)
    if reader:
        return reader.format
    extension = table_kind(first)
    if extension == "parquet":
        return "parquet" if _holds_bytes(first) else "table"
    if extension in (*TABLE_EXTENSIONS, LIST_EXTENSION, FIFTYONE):
        return "table"
    if extension in ("tar", "tgz"):
        return "webdataset"
    if is_coco_captions(first):
        return "coco"
    if extension == "npy":
        raise UserError(f"{first}: expected data, got npy; a list of uids is for curation.filter: {{type: uids}}")
    raise UserError(
        f"{first}: unknown format; expected .tar, a folder of images, or .{', .'.join(TABLE_EXTENSIONS)} (or .gz),"
        f" .arrow, COCO's captions in .json, or .{LIST_EXTENSION} (images or captions, one a line)"
    )


def _holds_bytes(path: str) -> bool:
    """Check whether a parquet file has image bytes in a column, not paths."""
    for field in open_parquet(path).schema_arrow:
        if _has_images(field):
            return True
        if field.name in IMAGE_COLUMNS and (is_bytes(field.type) or pa.types.is_struct(field.type)):
            return True
    return False


def _has_images(field: pa.Field) -> bool:
    """Check whether a column of any name contains Hugging Face's `{bytes, path}`, or lists of them."""
    kind = field.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _absolute(folder: str) -> str:
    return folder if files.is_remote(folder) else str(Path(folder).resolve())
