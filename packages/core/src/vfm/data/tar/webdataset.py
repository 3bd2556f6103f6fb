"""Read WebDataset tars at random. A shard is scanned once for member offsets, and then each sample is one read.

The members of a sample have the same name up to the first dot of the file name (`a/000.jpg`, `a/000.txt`). Nothing is
extracted or unpickled, and names are used as keys, never as paths. Rows count all samples of a tar in order of
appearance, including bad samples, so that row numbers depend only on the tar.

Source: the WebDataset format, github.com/webdataset/webdataset, and img2dataset's output.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, Self

import numpy as np
import pyarrow as pa

from vfm.data.ledger.account import Account
from vfm.data.reading.byte_ranges import MAX_GAP, OpenFile, ReadAhead, read_together
from vfm.data.samples import captions
from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.columns import read_columns
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import UNREACHABLE, BadSample, Sample, raise_if_unreachable, uid_from
from vfm.data.samples.shards import Opening, Shard, ShardReader
from vfm.data.samples.spec import DatasetSpec
from vfm.data.samples.texts import OnBad, Rows, texts_by_sample, texts_schema
from vfm.data.tar.packed_offsets import PackedScan, pack
from vfm.data.tar.scan import MAX_ROWS, SPARSE, UNKNOWN, TarScan, scan_tar
from vfm.data.tar.sidecar import ends_with_mark, sidecar_count
from vfm.storage import files
from vfm.storage.remote_spans import RemoteError, Span

ROWS_TOGETHER = 1024  # samples of a remote tar whose texts, or records, are read with few requests


class TarShard(ShardReader):
    """A tar, with its keys, and for each sample the offset and size of each member that the spec needs."""

    format = "tar"
    expected = "expected members KEY.EXTENSION, such as 000.jpg and 000.txt"

    def __init__(
        self,
        path: str,
        size: int,
        spec: DatasetSpec,
        *,
        scan: PackedScan | None = None,
        account: Account | None = None,
        ahead: ReadAhead | None = None,
        version: int = 0,
        name: str | None = None,
    ) -> None:
        """Open the tar at `path` of `size` bytes.

        Args:
            path: Path of the tar.
            size: Size of the tar in bytes.
            spec: Parts to read of each sample.
            scan: Offsets for the spec. Default: the tar is scanned.
            account: The row of each byte, if the scan was of the whole tar.
            ahead: Reads the bytes of a remote tar. Several tars may share it.
            version: Identifies the content of a remote tar, for caches.
            name: Unique name of the tar within its dataset, for keys that repeat. Default: its file name.
        """
        super().__init__(path, spec, name)
        self.size = size
        self.prefix = f"{self.name.removesuffix('.tar')}/" if spec.keys_repeat else ""
        self.slots = slots_of(spec)
        self.version = version
        self._ahead = (ahead or ReadAhead()) if files.is_remote(path) else None
        self._read_bytes: Callable[[int, int], bytes] = partial(self._ahead, path) if self._ahead else OpenFile(path)
        if scan is None:
            scanned = scan_shard(path, spec, size)
            scan, account = PackedScan(pack(scanned, self.slots), self.slots), scanned.account
        self._scan, self._account = scan, account
        self.complete, self.lost, self.damaged = self._scan.complete, self._scan.lost, self._scan.damaged
        self._len = self._scan.num_rows
        self._all_slots = list(enumerate(self.slots))

    @classmethod
    def find(cls, path: str) -> tuple[Shard, bool]:
        """Find the shard at a path, with a flag that is True if its samples need not be counted.

        A truncated tar gets the number of samples in the file next to it, but must be read.
        """
        count = sidecar_count(path)
        return Shard.of(path, count or 0), count is not None and ends_with_mark(path)

    @classmethod
    def open(cls, shard: Shard, spec: DatasetSpec, opening: Opening = Opening()) -> Self:  # noqa: B008 (frozen)
        """Open a tar with stored offsets. If no stored offsets are valid, the tar is scanned."""
        create = partial(cls, shard.path, shard.size, spec, ahead=opening.ahead, version=shard.mtime, name=opening.name)
        slots = slots_of(spec)
        for stored in opening.offsets:
            with suppress(ValueError):
                return create(scan=PackedScan(stored, slots))
        limit = MAX_ROWS if opening.limit is None else opening.limit
        scan = scan_shard(shard.path, spec, shard.size, limit)
        data = pack(scan, slots)
        if opening.save:
            opening.save(data)
        return create(scan=PackedScan(data, slots), account=scan.account)

    @classmethod
    def is_read(cls, *, scanned: bool) -> bool:
        """Check whether the samples are read for the index. They are if their number is not known."""
        return scanned

    def __len__(self) -> int:
        return self._len

    def account(self) -> Account:
        """Account for each byte by its row. This needs a tar that was scanned when it was opened."""
        assert self._account, f"{self.path}: opened with stored offsets"
        return self._account

    def own_keys(self, num_keys: int) -> list[str]:
        """List the keys in the tar. They may repeat in the dataset."""
        return self._scan.keys

    def places(self, row: int) -> list[tuple[int, int]]:
        """Look up (offset, size) for each slot of a row. Missing members have the negative markers of `TarScan`."""
        return self._scan.places(row)

    def spans(self, row: int, *, with_image: bool = True) -> list[Span]:
        """List the byte ranges that `read` needs for a row."""
        if row >= len(self):
            return []
        ranges = self._ranges(self.places(row), with_image)
        return [Span(self.path, start, stop, self.size, self.version) for _, start, stop in ranges if stop <= self.size]

    def key(self, row: int) -> str:
        """Look up the key of a row's sample, with the name of the tar as prefix if keys repeat in the dataset."""
        return f"{self.prefix}{self._key_in_tar(row)}"

    def _key_in_tar(self, row: int) -> str:
        return self._scan.key(row) if row < len(self) else f"row {row}"

    def where(self, row: int) -> str:
        """Format the sample's address for messages."""
        return f"{self.path}:{self._key_in_tar(row)}"

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        """Read the sample of a row in one read of the file, optionally without its image.

        Raises:
            BadSample: If the sample is truncated, has no image or no caption, or has an unreadable text.
        """
        if row >= self._len:
            raise BadSample("truncated_shard", self.where(row))
        key_in_tar = self._scan.key(row)
        where = f"{self.path}:{key_in_tar}"
        try:
            return self._read(row, key_in_tar, where, with_image)
        except BadSample as bad:
            if not bad.reason.startswith("missing_"):
                raise
            if row in self.damaged:
                raise BadSample("damaged_header", where) from None
            # In a truncated tar, the last sample may lack members because the tar ends before them.
            if row == self._len - 1 and not self.complete:
                raise BadSample("truncated_shard", where) from None
            raise

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Read the bytes of the rows that are needed next, from a remote tar with few requests."""
        if self._ahead:
            spans = chain.from_iterable(map(self.spans, rows))
            self._ahead.hold(read_together(spans))

    def records(self, rows: Sequence[int], names: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """Yield the whole `json` member of each row.

        A broken one is None, and a row without a `json` has an empty record.

        Raises:
            UserError: If a part of a remote tar cannot be reached.
        """
        for group in self._in_groups(np.asarray(rows, dtype=np.int64)):
            yield from map(self._record, group.tolist())

    def _record(self, row: int) -> dict[str, Any] | None:
        if row >= len(self):  # the tar is shorter than its known count
            return None
        ranges = self._ranges(self.places(row), with_image=False)
        try:
            members = self._members([each for each in ranges if each[0] == "json"], self.where(row))
            return captions.decode_json(members.get("json") or b"{}", self.where(row))
        except BadSample as bad:
            raise_if_unreachable(bad)
            return None

    def texts(self, rows: Rows, on_bad: OnBad) -> Any:
        """Read the texts of ascending rows in the schema `texts_schema`."""
        read = partial(self.read, with_image=False)
        parts = [texts_by_sample(read, group, on_bad) for group in self._in_groups(rows)]
        return pa.concat_tables(parts) if parts else texts_schema().empty_table()

    def _in_groups(self, rows: Rows) -> Iterator[Rows]:
        """Yield groups of rows. The members of a remote tar, except images, are read ahead with few requests each."""
        if self._ahead is None:
            yield rows
            return
        for start in range(0, len(rows), ROWS_TOGETHER):
            group = rows[start : start + ROWS_TOGETHER]
            spans: list[Span] = []
            for row in group.tolist():
                spans += self.spans(row, with_image=False)
            self._ahead.hold(read_together(spans))
            yield group

    def _ranges(self, places: list[tuple[int, int]], with_image: bool) -> list[tuple[str, int, int]]:
        """List name, start and stop of each member of a row to read."""
        ranges = []
        for slot, name in self._all_slots if with_image else self._all_slots[1:]:
            start, size = places[slot]
            if start >= 0:
                ranges.append((name, start, start + size))
        return ranges

    def _read(self, row: int, key_in_tar: str, where: str, with_image: bool) -> Sample:
        if not files.is_inside(key_in_tar):
            raise BadSample("unsafe_path", where)
        # Negative offsets stand for a reason why a member cannot be read.
        places = self._scan.places(row)
        if SPARSE in [offset for offset, _ in places]:
            raise BadSample("sparse_member", where)
        image_offset, _ = places[0]
        if image_offset == UNKNOWN:
            raise BadSample("unknown_extension", where)
        if image_offset < 0:
            raise BadSample("missing_image", where)
        members = self._members(self._ranges(places, with_image), where)
        record = captions.decode_json(members["json"], where) if "json" in members else {}
        texts = captions.captions_of_members(self.spec, members, record, where)
        key, url = self.prefix + key_in_tar, record.get("url")
        if not isinstance(url, str) or not url:
            url = None
        return Sample(
            key=key,
            uid=uid_from(record.get("uid"), key),
            image=members.get("image", b""),
            texts=texts,
            label=self._label(members, record, where),
            labels=self._labels(members, record, where),
            url=url,
            columns=read_columns(self.spec, lambda name: captions.field_of(record, name.removeprefix("json.")), where),
        )

    def _members(self, ranges: list[tuple[str, int, int]], where: str) -> dict[str, bytes]:
        if not ranges:
            return {}
        _, starts, stops = zip(*ranges, strict=True)
        first = min(starts)
        last = max(stops)
        if last > self.size:
            raise BadSample("truncated_shard", where)
        # Members are mostly adjacent, so one read gets all. An unsorted tar needs several reads.
        try:
            if last - first > MAX_GAP + sum(stops) - sum(starts):
                return {name: self._read_bytes(start, stop) for name, start, stop in ranges}
            data = self._read_bytes(first, last)
        except RemoteError as error:
            raise BadSample(UNREACHABLE, where) from error
        return {name: data[start - first : stop - first] for name, start, stop in ranges}

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
            listed = _labels_in_flags(members.get(source, b""), len(self.spec.class_names), where)
        if not isinstance(listed, list):
            raise BadSample("missing_label", where)
        labels = {self.spec.label_of(value, where) for value in listed}
        return tuple(sorted(labels))


def _labels_in_flags(data: bytes, num_classes: int, where: str) -> list[int]:
    """Read the labels in an array with a flag per class, (C,)."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        flags = np.asarray(array > 0, dtype=bool)
    except Exception:  # for damaged bytes, archives and texts, numpy raises errors of many types
        raise BadSample("missing_label", where) from None
    if flags.ndim != 1 or (num_classes and len(flags) != num_classes):
        raise BadSample("unknown_label", f"{where} (an array of {flags.shape} for {num_classes} classes)")
    return [int(label) for label in np.flatnonzero(flags)]


def scan_shard(path: str, spec: DatasetSpec, size: int | None = None, limit: int = MAX_ROWS) -> TarScan:
    """Scan a tar for the parts that a spec reads.

    Args:
        path: Path or address of the tar.
        spec: Locations of the parts of a sample.
        size: Size of a remote tar. If it is known, a request is saved.
        limit: The scan ends after that many samples.
    """
    extensions = spec.image_key.split(",") if spec.image_key else IMAGE_EXTENSIONS
    return scan_tar(path, slots_of(spec), extensions, limit, size)


def slots_of(spec: DatasetSpec) -> list[str]:
    """List the members to find for each sample. They include `json`, because it may contain a uid."""
    sources = [*spec.texts.values(), *filter(None, (spec.label_key, spec.labels_key))]
    return ["image", *sorted({"json", *columns_of(sources)})]
