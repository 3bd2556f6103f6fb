"""Making the index of a user's data: counting, and reading through what nobody has counted before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from vfm.config import UserError
from vfm.data.images import decode_image, open_image
from vfm.data.index import BadRow, Shard, ShardReader, open_shard, write_index
from vfm.data.layout import Layout
from vfm.data.sample import BadSample, Sample
from vfm.data.spec import DatasetSpec
from vfm.data.tar_scan import MAX_ROWS
from vfm.data.webdataset import TarShard
from vfm.stage import Context

ENOUGH_TO_JUDGE = 1000  # samples before a share of bad ones means anything
PEEK = 50  # samples to try before a data set is called unreadable


@dataclass
class Indexing:
    """One pass over a data set's shards. Samples found to be bad are told, counted and left out."""

    ctx: Context
    spec: DatasetSpec
    max_bad_fraction: float
    num_samples: int | None = None  # at most so many
    verify: bool = True  # read through what has no count
    shards: list[Shard] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    good: int = 0

    def run(self, directory: Path, shards: Iterable[tuple[Shard, bool]], total: int | None = None) -> int:
        """Writes the index into `directory`.

        Args:
            directory: the artifact's folder.
            shards: each with whether its number of samples is known; if not, it is read through.
            total: number of shards, where it is known.

        Returns:
            Number of samples that can be used.

        Raises:
            UserError: there are none, or too many are bad.
        """
        for shard, counted in shards:
            self._add(shard, counted, directory)
            if total:
                self.ctx.progress(len(self.shards), total, "shards", samples=self.good)
            self._judge(ENOUGH_TO_JUDGE)
            if self.num_samples and self.good >= self.num_samples:
                break
        self.check_labels()
        self._judge(1)
        if not self.good:
            paths = ", ".join(shard.path for shard in self.shards[:3])
            raise UserError(f"{self.ctx.stage}: there are no samples{' in ' if paths else ''}{paths}")
        return write_index(directory, self.shards, self.spec, bad_rows=self.bad)

    @property
    def counts(self) -> Counter[str]:
        """Bad samples by reason."""
        return Counter(row.reason for row in self.bad)

    def check_labels(self) -> None:
        """Stops where a label is none of the classes: however few, the list is of other data.

        Raises:
            UserError: one line with the first of them.
        """
        if unknown := [row for row in self.bad if row.reason == "unknown_label"]:
            raise UserError(
                f"{self.ctx.stage}: {len(unknown)} labels do not fit the {len(self.spec.class_names)} class names; the"
                f" first is {unknown[0].where}; mend class_names, or classnames.txt beside the data"
            )

    def _add(self, shard: Shard, counted: bool, directory: Path) -> None:
        bad: list[BadRow] = []
        if not counted:
            number = len(self.shards)
            cache = directory / "offsets" / f"{number:06d}.parquet"
            reader = open_shard(shard.path, shard.format, self.spec, size=shard.size, cache=cache)
            shard = replace(shard, num_samples=len(reader))
            bad = list(_verify(reader, number, shard.path)) if self.verify else []
        if self.num_samples:
            shard, bad = _cut(shard, bad, self.num_samples - self.good)
        for row in bad:
            self.ctx.skip(row.reason, row.where)
        self.shards.append(shard)
        self.bad += bad
        self.good += shard.num_samples - sum(row.row >= 0 for row in bad)

    def _judge(self, enough: int) -> None:
        seen = self.good + len(self.bad)
        if self.bad and seen >= enough:
            first = f"; the first is {self.bad[0].where} ({self.bad[0].reason})"
            check_bad(self.ctx.stage, self.counts, seen, self.max_bad_fraction, first)


def check_bad(stage: str, bad: Counter[str], seen: int, max_bad_fraction: float, more: str = "") -> None:
    """Stops a stage where more than a share of the samples it has seen are bad, counted by reason.

    Raises:
        UserError: they are; the line ends with `more`.
    """
    if bad.total() > max_bad_fraction * seen:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in bad.most_common(3))
        raise UserError(
            f"{stage}: {bad.total()} of {seen} samples are bad: {reasons}; more than max_bad_fraction:"
            f" {max_bad_fraction}{more}"
        )


def _verify(reader: ShardReader, number: int, path: str) -> Iterator[BadRow]:
    """Reads every sample of a shard, its image as far as the header."""
    cut_off = False
    for row in range(len(reader)):
        try:
            sample = reader.read(row)
            open_image(sample.image, f"{path}:{sample.key}")
        except BadSample as bad:
            cut_off |= bad.reason == "truncated_shard"
            yield BadRow(number, row, bad.reason, bad.where)
    if isinstance(reader, TarShard) and not reader.complete and not cut_off:
        yield BadRow(number, -1, "truncated_shard", path)


def _cut(shard: Shard, bad: list[BadRow], wanted: int) -> tuple[Shard, list[BadRow]]:
    """The shard up to the row where `wanted` good samples are reached."""
    bad_rows = {row.row for row in bad if row.row >= 0}
    if shard.num_samples - len(bad_rows) <= wanted:
        return shard, bad
    good = 0
    for row in range(shard.num_samples):
        good += row not in bad_rows
        if good == wanted:
            return replace(shard, num_samples=row + 1), [one for one in bad if 0 <= one.row <= row]
    return shard, bad


def first_sample(layout: Layout, spec: DatasetSpec) -> Sample:
    """A sample from the beginning of a layout, decoded to see that it can be: a look before anything runs.

    Raises:
        UserError: none of the first can be used.
    """
    problem: BadSample | None = None
    for read in _first_reads(layout, spec):
        try:
            sample = read()
            decode_image(sample.image, sample.key)
            return sample
        except BadSample as bad:
            problem = problem or bad
    places = ", ".join(f"{language} in {source}" for language, source in spec.texts.items())
    where = f"; captions are looked for as {places}: texts says where they stand"
    what = (f": {problem}" if problem else "") + (where if problem and problem.reason == "missing_caption" else "")
    raise UserError(f"{layout.paths[0]}: none of the first samples can be used{what}")


def _first_reads(layout: Layout, spec: DatasetSpec) -> Iterator[Callable[[], Sample]]:
    if layout.kind in ("folder", "table"):
        yield from (partial(entry.read, spec) for entry in islice(layout.entries(spec), PEEK))
        return
    path = layout.paths[0]
    readers: Iterable[ShardReader]
    if layout.kind == "webdataset":  # the whole tar only where its beginning does not do, as where it is not sorted
        readers = (TarShard(path, Shard.of(path, 0).size, spec, limit=limit) for limit in (PEEK, MAX_ROWS))
    else:
        readers = [open_shard(path, "parquet", spec, size=0)]
    for reader in readers:
        yield from (partial(reader.read, row) for row in range(min(PEEK, len(reader))))
