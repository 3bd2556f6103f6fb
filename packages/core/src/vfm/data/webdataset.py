"""WebDataset tars with random access: a shard is scanned once for its members' offsets, then a sample is one read.

The members of a sample share the name up to the first dot of the file name (`a/000.jpg`, `a/000.txt`). Nothing is
extracted or unpickled; names are keys, never paths. Rows count all samples of a tar in order of appearance, including
bad ones, so that row numbers depend only on the tar.

Source: the WebDataset format, github.com/webdataset/webdataset; img2dataset's output.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vfm import files
from vfm.config import UserError
from vfm.data import captions
from vfm.data.parquet import DAMAGE, open_parquet
from vfm.data.sample import BadSample, Sample, given_uid, uid_of
from vfm.data.spec import DatasetSpec
from vfm.data.tar_members import BLOCK
from vfm.data.tar_scan import MAX_ROWS, SPARSE, load_scan, save_scan, scan_tar
from vfm.data.texts import OnBad, Rows, texts_by_sample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
VIDEO_EXTENSIONS = (
    "mp4", "webm", "mkv", "avi", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "3gp", "ogv",
)  # fmt: skip
MAX_GAP = 64 << 10  # unused bytes that are read to avoid a second read


class TarShard:
    """One tar: keys, and for each sample the offset and size of each member that the spec needs."""

    def __init__(
        self,
        path: str,
        size: int,
        spec: DatasetSpec,
        cache: Path | None = None,
        limit: int = MAX_ROWS,
        name: str | None = None,
    ) -> None:
        """Open the tar at `path` of `size` bytes.

        Args:
            path: path of the tar.
            size: its size in bytes.
            spec: parts to read of each sample.
            cache: parquet file that stores the result of the scan.
            limit: end the scan after this many samples.
            name: unique name of the tar within its dataset, for keys that repeat; default: its file name.
        """
        self.path, self.size, self.spec = path, size, spec
        self.prefix = f"{(name or path.rpartition('/')[2]).removesuffix('.tar')}/" if spec.keys_repeat else ""
        self.slots = _slots(spec)
        scan = load_scan(cache, self.slots) if cache and cache.is_file() else None
        if scan is None:
            extensions = spec.image_key.split(",") if spec.image_key else IMAGE_EXTENSIONS
            scan = scan_tar(path, self.slots, extensions, limit)
            if cache:
                save_scan(cache, scan, self.slots)
        self.keys, self.places, self.complete = scan.keys, scan.places, scan.complete
        self.lost, self.damaged = scan.lost, frozenset(scan.damaged)
        self.sparse = frozenset(np.flatnonzero((scan.places[:, :, 0] == SPARSE).any(axis=1)).tolist())

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """Return the key of a row's sample, behind the name of the tar if the keys of the dataset repeat."""
        return f"{self.prefix}{self._own_key(row)}"

    def _own_key(self, row: int) -> str:
        return self.keys[row] if row < len(self.keys) else f"row {row}"

    def where(self, row: int) -> str:
        """Return the sample's address for messages."""
        return f"{self.path}:{self._own_key(row)}"

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row, in one read of the file, optionally without its image.

        Raises:
            BadSample: the sample is truncated, has no image or no caption, or a text is not readable.
        """
        where = self.where(row)
        if row >= len(self.keys):
            raise BadSample("truncated_shard", where)
        try:
            return self._read(row, where, with_image)
        except BadSample as bad:
            if not bad.reason.startswith("missing_"):
                raise
            if row in self.damaged:
                raise BadSample("damaged_header", where) from None
            # In a truncated tar the last sample may lack members only because the tar ends before them.
            if row == len(self.keys) - 1 and not self.complete:
                raise BadSample("truncated_shard", where) from None
            raise

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Return the texts of ascending rows in the schema `texts_schema`."""
        return texts_by_sample(partial(self.read, with_image=False), rows, on_bad)

    def _read(self, row: int, where: str, with_image: bool) -> Sample:
        key = self.key(row)
        if not files.is_inside(self.keys[row]):
            raise BadSample("unsafe_path", where)
        if row in self.sparse:
            raise BadSample("sparse_member", where)
        if self.places[row, 0, 0] < 0:
            raise BadSample("missing_image", where)
        members = self._members(row, self.slots if with_image else self.slots[1:], where)
        record = captions.decode_json(members["json"], where) if "json" in members else {}
        texts = {language: self._texts(source, members, record, where) for language, source in self.spec.texts.items()}
        if self.spec.texts:
            texts = captions.require_captions(texts, where)
        url = record.get("url")
        return Sample(
            key=key,
            uid=given_uid(record.get("uid")) or uid_of(key),
            image=members.get("image", b""),
            texts=texts,
            label=self._label(members, record, where),
            labels=self._labels(members, record, where),
            url=url if isinstance(url, str) and url else None,
        )

    def _members(self, row: int, slots: list[str], where: str) -> dict[str, bytes]:
        spans = {
            name: (offset, offset + size)
            for name, (offset, size) in zip(self.slots, self.places[row].tolist(), strict=True)
            if offset >= 0 and name in slots
        }
        if not spans:
            return {}
        first, last = min(start for start, _ in spans.values()), max(stop for _, stop in spans.values())
        if last > self.size:
            raise BadSample("truncated_shard", where)
        # Members are mostly adjacent: one read, so one request of a remote store. An unsorted tar takes several.
        if last - first > MAX_GAP + sum(stop - start for start, stop in spans.values()):
            return {name: files.read_bytes(self.path, *span) for name, span in spans.items()}
        data = files.read_bytes(self.path, first, last)
        return {name: data[start - first : stop - first] for name, (start, stop) in spans.items()}

    def _texts(self, source: str, members: dict[str, bytes], record: Mapping[str, Any], where: str) -> list[str]:
        if source.startswith("json."):
            return captions.clean_captions(captions.field_of(record, source.removeprefix("json.")), where)
        extension, _, rest = source.partition(".")
        return captions.captions_in(members.get(extension, b""), rest, where)

    def _label(self, members: dict[str, bytes], record: Mapping[str, Any], where: str) -> int | None:
        source = self.spec.label_key
        if source is None:
            return None
        if source.startswith("json."):
            value = captions.field_of(record, source.removeprefix("json."))
        else:
            value = captions.decode_text(members.get(source, b""), where).strip()
        return self.spec.label_of(value, where)

    def _labels(self, members: dict[str, bytes], record: Mapping[str, Any], where: str) -> tuple[int, ...] | None:
        source = self.spec.labels_key
        if source is None:
            return None
        if source.startswith("json."):
            listed = captions.field_of(record, source.removeprefix("json."))
        else:
            listed = _places(members.get(source, b""), len(self.spec.class_names), where)
        if not isinstance(listed, list):
            raise BadSample("missing_label", where)
        return tuple(sorted({self.spec.label_of(value, where) for value in listed}))


def _places(data: bytes, num_classes: int, where: str) -> list[int]:
    """Return the labels of an array of flags, one per class, (C,)."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise BadSample("missing_label", where) from None
    if array.ndim != 1 or (num_classes and len(array) != num_classes):
        raise BadSample("unknown_label", f"{where} (an array of {array.shape} for {num_classes} classes)")
    return [int(place) for place in np.flatnonzero(array > 0)]


def _slots(spec: DatasetSpec) -> list[str]:
    """Return the members to find of each sample; always `json`, which may hold a uid."""
    sources = [*spec.texts.values(), *(key for key in (spec.label_key, spec.labels_key) if key)]
    return ["image", *sorted({"json", *(source.partition(".")[0] for source in sources)})]


def ends_with_mark(path: str) -> bool:
    """Return whether a tar ends with the mark of its end, a block of zeros, and so is not truncated."""
    size, _ = files.size_and_time(path)
    return size >= BLOCK and not any(files.read_bytes(path, size - BLOCK, size))


def sidecar_count(path: str) -> int | None:
    """Return the number of samples from img2dataset's files beside a tar: `00000_stats.json` or `00000.parquet`.

    None if there is no such file, or it is not readable.
    """
    stem = path.removesuffix(".tar")
    if files.exists(f"{stem}_stats.json"):
        try:
            count = json.loads(files.read_bytes(f"{stem}_stats.json"))["successes"]
        except (ValueError, LookupError, TypeError, OSError, RecursionError):
            count = None
        if isinstance(count, int) and count >= 0:
            return count
    if files.exists(f"{stem}.parquet"):
        try:
            with open_parquet(f"{stem}.parquet") as parquet:
                if "status" in parquet.schema_arrow.names:
                    return int(parquet.read(["status"])["status"].to_pylist().count("success"))
        except (UserError, UnicodeDecodeError, *DAMAGE):
            return None
    return None
