"""The layout of a user's files: tars, a folder of images, a table of paths, COCO's captions, or parquet with images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from vfm.base import UserError
from vfm.data.layouts.coco_captions import CAPTION, captions_in_folder, coco_entries, is_coco_captions
from vfm.data.layouts.folder import caption_folder, class_folders, image_folder, image_names
from vfm.data.prompts.clip_benchmark import benchmark_shards, type_beside
from vfm.data.samples.shards import Found, ShardReader, UnreadShard, format_of_file, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.arrow_files import saved_dataset
from vfm.data.tables.image_list import ImageEntry, write_image_lists
from vfm.data.tables.parquet import IMAGE_COLUMNS, is_bytes, open_parquet
from vfm.data.tables.table import (
    CAPTION_COLUMNS,
    LIST_EXTENSION,
    PATH_COLUMNS,
    TABLE_EXTENSIONS,
    find_column,
    lists_captions,
    table_columns,
    table_entries,
    table_kind,
)
from vfm.storage import files

Kind = Literal["webdataset", "folder", "table", "parquet", "coco"]
METADATA_STEMS = ("metadata", "captions", "annotations", "labels")
LABEL_COLUMNS = ("label", "cls", "class", "category", "target")


@dataclass(frozen=True)
class Layout:
    """The files behind a path, and their kind."""

    kind: str  # a `Kind`, or the shard format of a plugin
    paths: list[str]
    image_root: str

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
        """Return whether the files are tables with captions and without images or paths of images.

        Args:
            image_key: column of the images that the user named.
            texts: columns of the captions that the user named.
        """
        if self.kind not in ("table", "parquet") or image_key or self.image_root:
            return False
        path = self.paths[0]
        if table_kind(path) == LIST_EXTENSION:
            return lists_captions(path)
        columns = set(table_columns(path))
        named = {source.partition(".")[0] for source in texts.values()}
        captions = named <= columns if named else bool(columns.intersection(CAPTION_COLUMNS))
        if not captions or not columns.isdisjoint({*PATH_COLUMNS, *IMAGE_COLUMNS}):
            return False
        return table_kind(path) != "parquet" or not any(
            is_bytes(field.type) or _has_images(field)
            for field in open_parquet(path).schema_arrow
            if field.name not in ("uid", "key")
        )

    def with_defaults(self, spec: DatasetSpec, *, labels: bool) -> DatasetSpec:
        """Return the spec with the default location of the captions (or the labels), if the user gave none."""
        if self.kind == "parquet" and self.image_root:
            spec = spec.model_copy(update={"image_root": _absolute(self.image_root)})
        if (spec.label_key if labels else spec.texts) or (labels and self.kind == "folder"):
            return spec
        path = self.paths[0]
        if self.kind == "coco":
            if labels:
                raise UserError(f"{path}: has captions and no labels: import it as data.pairs")
            return spec.model_copy(update={"texts": {"en": CAPTION}})
        if self.kind not in ("table", "parquet"):
            captions = "txt.lines" if self.kind == "webdataset" and type_beside(path) == "retrieval" else "txt"
            return spec.model_copy(update={"label_key": "cls"} if labels else {"texts": {"en": captions}})
        if labels:
            return spec.model_copy(
                update={"label_key": find_column(table_columns(path), None, LABEL_COLUMNS, "label_key", path)}
            )
        return spec.model_copy(
            update={"texts": {"en": find_column(table_columns(path), None, CAPTION_COLUMNS, "texts", path)}}
        )

    def shards(self, directory: Path, spec: DatasetSpec) -> Iterator[Found]:
        """Yield the user's own files as they are, and lists of images, whose samples are counted when they are read."""
        if reader := self.reader:
            yield from (UnreadShard(path, reader) for path in self.paths)
        else:
            yield from ((shard, False) for shard in write_image_lists(directory, self.entries(spec), spec))

    def entries(self, spec: DatasetSpec) -> Iterator[ImageEntry]:
        """Yield the images that a folder, a table or COCO's captions list."""
        for path in self.paths:
            if self.kind == "coco":
                yield from coco_entries(path, self.image_root, spec)
            elif self.kind == "table":
                yield from table_entries(path, self.image_root or path.rpartition("/")[0] or ".", spec)
            elif spec.texts and not spec.captions_optional:
                yield from caption_folder(path, spec)
            elif spec.class_names:
                yield from class_folders(path)[1]
            else:
                yield from image_folder(path, spec)


def find_layout(
    path: str | Sequence[str], kind: Kind | Literal["auto"], image_root: str | None, split: str | None = None
) -> Layout:
    """Return the layout of a path, by the given kind or by the file names.

    Args:
        path: as the user gave it.
        kind: kind of the files; auto: by their names.
        image_root: folder that a table's image paths are relative to.
        split: split of a CLIP_benchmark folder, or of a saved dataset of Hugging Face; None: `test` of the first, the
            only one of the second.

    Raises:
        UserError: the path does not exist, is no regular file or folder, or its files cannot be read.
    """
    paths = files.expand_paths(path)
    if missing := files.missing(paths):
        raise UserError(f"{missing[0]}: no such file or folder")
    for one in paths:
        files.check_regular(one)
    if len(paths) == 1 and files.is_directory(paths[0]) and kind != "folder":
        paths = _inside(paths[0], kind, split)
    guessed = _guess(paths) if kind == "auto" else kind
    if guessed != "folder" and (folders := [one for one in paths if files.is_directory(one)]):
        raise UserError(f"{folders[0]}: expected files of the format {guessed}, got a folder")
    return Layout(guessed, paths, image_root or "")


def _inside(folder: str, kind: Kind | Literal["auto"], split: str | None) -> list[str]:
    """Return the tars, the table, the captions, the parquet or Arrow files in a folder, else the folder itself."""
    # The order matters: img2dataset writes a parquet table beside each tar, and image folders may have a table.
    root = folder.rstrip("/")
    if kind in ("auto", "webdataset") and (shards := benchmark_shards(root, split or "test")):
        return shards
    names = files.names_in(folder)
    tars = [f"{root}/{name}" for name in names if name.endswith(".tar")]
    if tars and kind in ("auto", "webdataset"):
        return tars
    tables = [f"{root}/{stem}.{end}" for stem in METADATA_STEMS for end in TABLE_EXTENSIONS if f"{stem}.{end}" in names]
    if tables and kind in ("auto", "table"):
        return tables[:1]
    if kind in ("auto", "coco") and (captions := captions_in_folder(folder, names)):
        return captions
    if kind in ("auto", "parquet") and (arrows := saved_dataset(folder, names, split)):
        return arrows
    parquets = [f"{root}/{name}" for name in names if name.endswith(".parquet")]
    if parquets and kind in ("auto", "parquet"):
        return parquets
    return [f"{root}/{name}" for name in names if kind == "auto" and format_of_file(name)] or [folder]


def _guess(paths: Sequence[str]) -> str:
    first = paths[0]
    if files.is_directory(first):
        image_names(first)  # raises if there are no images
        return "folder"
    if reader := format_of_file(first):
        return reader.format
    extension = table_kind(first)
    if extension == "parquet":
        return "parquet" if _holds_bytes(first) else "table"
    if extension in (*TABLE_EXTENSIONS, LIST_EXTENSION):
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
    """Return True if a parquet file has image bytes in a column, not paths."""
    return any(
        _has_images(field) or (field.name in IMAGE_COLUMNS and (is_bytes(field.type) or pa.types.is_struct(field.type)))
        for field in open_parquet(path).schema_arrow
    )


def _has_images(field: pa.Field) -> bool:
    """Return whether a column has Hugging Face's `{bytes, path}`, or lists of them, whatever its name."""
    kind = field.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _absolute(folder: str) -> str:
    return folder if files.is_remote(folder) else str(Path(folder).resolve())
