"""A tar whose samples are read while its bytes arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import BadSample, Sample
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.streaming.arriving import Arriving
from vfm.data.tar.members import BLOCK, Gap, TarMembers
from vfm.data.tar.packed_offsets import pack
from vfm.data.tar.scan import TarContent, TarScan
from vfm.data.tar.webdataset import TarShard, slots_of
from vfm.storage.remote_spans import Span

FEW = 4  # rows by whose size the size of the next ones is estimated


class StreamedTar(TarShard):
    """A tar that is parsed from its first byte to its last one. Rows have the numbers of a scan.

    The members of a sample must follow each other. What is found too late is missing in its sample.
    """

    def __init__(self, shard: Shard, spec: DatasetSpec, name: str | None = None) -> None:
        extensions = spec.image_key.split(",") if spec.image_key else IMAGE_EXTENSIONS
        self.content = TarContent(shard.path, slots_of(spec), set(extensions))
        self._rows = _Rows(self.content)
        scan = cast("Any", self._rows)
        super().__init__(shard.path, shard.size, spec, scan=scan, version=shard.mtime, name=name)
        self.arriving = Arriving(Span(shard.path, 0, shard.size, shard.size, shard.mtime))
        self._read_bytes = self.arriving.between
        self.ended = False
        self._stop = 0  # byte after the last member that was parsed
        self._parsed = self._parse()

    @property
    def bytes_of_row(self) -> int:
        """Mean size of the known rows, 1 if there are none."""
        return self._stop // max(1, self._len) or 1

    def request(self, before: int) -> None:
        """Request the bytes of the rows before this one. It waits for the first rows, whose size says how many."""
        self.advance(FEW)
        if not self.ended:
            self.arriving.request(self._stop + (before - self._len) * self.bytes_of_row)

    def advance(self, num_rows: int) -> int:
        """Parse the tar until so many rows are known, or to its end. Count the known rows, at most `num_rows`.

        Raises:
            UserError: If its bytes cannot be read.
        """
        while self._len < num_rows and not self.ended:
            self._len = next(self._parsed)
        return min(self._len, num_rows)

    def entry(self, row: int) -> Sample | BadSample:
        """Read the sample of a known row, or the reason why it cannot be used."""
        try:
            return self.read(row)
        except BadSample as bad:
            return bad

    def drop(self, before: int) -> None:
        """Drop the bytes of the rows before this one."""
        if before < len(self._rows.known):
            starts = [start for start, _ in self.places(before) if start >= 0]
            self.arriving.drop(min(starts, default=BLOCK) - BLOCK)

    @property
    def packed(self) -> bytes:
        """Offsets of all rows, as a scan stores them. The tar must have been parsed to its end."""
        rows = self.content.rows
        self.content.mark_unknown(self.content.unknown)
        places = np.array(list(rows.values()), dtype=np.int64).reshape(len(rows), len(self.slots), 2)
        scan = TarScan(list(rows), places, self.complete, tuple(sorted(self.damaged)), tuple(self.lost))
        return pack(scan, self.slots)

    def _parse(self) -> Iterator[int]:
        """Yield the number of complete rows whenever another one begins, and at the end."""
        members = TarMembers(self.arriving, self.path)  # type: ignore[arg-type]
        keys, content = self._rows.known, self.content
        for member in members:
            if isinstance(member, Gap):
                content.add_gap(member)
                continue
            content.add(member)
            if len(content.rows) > len(keys):
                keys.append(next(reversed(content.rows)))
                self._stop = members.stop
                if len(keys) > 1:
                    yield len(keys) - 1
        self.complete, self.ended = members.complete, True
        damaged, lost = content.damage()
        self.damaged = frozenset(damaged)
        self.lost = (*lost, *content.duplicates(), *content.unrecognised())
        yield len(keys)


class _Rows:
    """The rows that have been found so far, in the form of a stored scan."""

    complete, lost, num_rows = True, (), 0
    damaged = frozenset[int]()

    def __init__(self, content: TarContent) -> None:
        self.content = content
        self.known: list[str] = []

    def key(self, row: int) -> str:
        """Look up the key of a row."""
        return self.known[row]

    def places(self, row: int) -> list[tuple[int, int]]:
        """Look up the (offset, size) of each slot of a row."""
        key = self.known[row]
        self.content.mark_unknown([key])
        return self.content.rows[key]
