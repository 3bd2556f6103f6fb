"""Building the index of a user's data: counting samples, and reading shards without a known count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

from vfm.base import UserError
from vfm.data.index.index import OFFSETS_FOLDER, BadRow, write_index
from vfm.data.indexing.examination import Examination, Examined, examine_all
from vfm.data.indexing.repeated_keys import RepeatedKeys
from vfm.data.indexing.stages import ImageFiles, Verify
from vfm.data.layouts.layout import Layout
from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import BadSample, Sample
from vfm.data.samples.shards import Found, Opening, Shard, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tar.packed_offsets import PACKED_FILE, OffsetsWriter
from vfm.interfaces import Context

MIN_SAMPLES_TO_CHECK = 1000  # with fewer samples, the fraction of bad ones is not meaningful yet
PEEK = 50  # samples of a shard to try before a dataset is reported as unreadable
PEEK_SHARDS = 3  # the first may be empty


@dataclass
class Indexing:
    """One pass over a dataset's shards. Bad samples are reported, counted and left out."""

    ctx: Context
    spec: DatasetSpec
    max_bad_fraction: float
    place: str  # what is indexed, for errors
    num_samples: int | None = None  # upper limit
    verify: Verify = True  # read every sample of shards without a known count; all: of all shards
    workers: int = 0  # processes that read shards; remote ones are read several at a time in each
    shards: list[Shard] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    good: int = 0
    repeated: RepeatedKeys = field(default_factory=RepeatedKeys)

    @classmethod
    def of(cls, config: ImageFiles, ctx: Context, spec: DatasetSpec, place: str) -> Self:
        """Return the indexing that a stage describes."""
        workers = config.runtime.num_workers
        return cls(ctx, spec, config.max_bad_fraction, place, config.num_samples, config.verify, workers)

    def run(self, directory: Path, shards: Iterable[Found], total: int | None = None) -> int:
        """Write the index into `directory`.

        Args:
            directory: the artifact's folder.
            shards: each shard with a flag: True if its number of samples is known, False to read it; or a file.
            total: number of shards, if known.

        Returns:
            number of usable samples.

        Raises:
            UserError: there are no usable samples, or too many bad ones.
        """
        with (
            OffsetsWriter(directory / OFFSETS_FOLDER / PACKED_FILE) as offsets,
            closing(
                examine_all(Examination(self.spec, self.verify, self.num_samples), shards, self.workers)
            ) as examined,
        ):
            for found in examined:
                offsets.add(found.offsets)
                self._add(found)
                if total:
                    self.ctx.progress(len(self.shards), total, "shards", samples=self.good)
                self._check_bad(MIN_SAMPLES_TO_CHECK)
                if self.num_samples and self.good >= self.num_samples:
                    break
        self.check_labels()
        self._check_bad(1)
        if not self.good:
            raise UserError(f"{self.ctx.stage}: no samples found in {self._searched(directory)}")
        if self.repeated.example:
            key, one, other = self.repeated.example
            self.ctx.log(f"keys repeat ({key!r} is in {one} and in {other}), so each key begins with its shard's name")
            self.spec = self.spec.model_copy(update={"keys_repeat": True})
        return write_index(directory, self.shards, self.spec, bad_rows=self.bad)

    @property
    def counts(self) -> Counter[str]:
        """Number of bad samples by reason."""
        return Counter(row.reason for row in self.bad)

    def check_labels(self) -> None:
        """Check that every label is one of the classes: a single unknown label means wrong class names.

        Raises:
            UserError: there are unknown labels; the line names the first.
        """
        if unknown := [row for row in self.bad if row.reason == "unknown_label"]:
            raise UserError(
                f"{self.ctx.stage}: {len(unknown)} labels do not fit the {len(self.spec.class_names)} class names; the"
                f" first is {unknown[0].where}; correct class_names, or classnames.txt beside the data"
            )

    def _add(self, found: Examined) -> None:
        shard, number = found.shard, len(self.shards)
        bad = [BadRow(number, *row) for row in found.bad]
        self.repeated.add(shard.path, found.keys)
        if self.num_samples:
            shard, bad = _cut(shard, bad, self.num_samples - self.good)
        for row in bad:
            self.ctx.skip(row.reason, row.where)
        self.shards.append(shard)
        self.bad += bad
        self.good += shard.num_samples - sum(row.row >= 0 for row in bad)

    def _searched(self, directory: Path) -> str:
        """Return what has no samples, for the error, and why: the bad ones, or how a tar names its members."""
        theirs = [shard.path for shard in self.shards[:3] if not Path(shard.path).is_relative_to(directory)]
        place = ", ".join(theirs) or self.place
        if self.bad:
            return f"{place}: {most_common(self.counts)}{self._first_bad}"
        names = next((known for shard in self.shards if (known := shard_format(shard.format).expected)), "")
        return f"{place}: {names}" if names else place

    @property
    def _first_bad(self) -> str:
        return f"; the first is {self.bad[0].where} ({self.bad[0].reason})"

    def _check_bad(self, min_samples: int) -> None:
        seen = self.good + len(self.bad)
        if self.bad and seen >= min_samples:
            check_bad(self.ctx.stage, self.counts, seen, self.max_bad_fraction, self._first_bad)


def check_bad(stage: str, bad: Counter[str], seen: int, max_bad_fraction: float, more: str = "") -> None:
    """Check that the fraction of bad samples is tolerated.

    Args:
        stage: name of the stage, for the error.
        bad: number of bad samples by reason.
        seen: number of samples, good and bad.
        max_bad_fraction: tolerated fraction.
        more: end of the error line.

    Raises:
        UserError: more samples are bad.
    """
    if bad.total() > max_bad_fraction * seen:
        raise UserError(
            f"{stage}: {bad.total()} of {seen} samples are bad: {most_common(bad)}; more than max_bad_fraction:"
            f" {max_bad_fraction}{more}"
        )


def most_common(bad: Counter[str]) -> str:
    """Return the three most common reasons of bad samples, with their numbers."""
    return ", ".join(f"{reason} ({count})" for reason, count in bad.most_common(3))


def _cut(shard: Shard, bad: list[BadRow], limit: int) -> tuple[Shard, list[BadRow]]:
    """Cut the shard after the row with which `limit` good samples are reached."""
    bad_rows = {row.row for row in bad if row.row >= 0}
    if shard.num_samples - len(bad_rows) <= limit:
        return shard, bad
    good = 0
    for row in range(shard.num_samples):
        good += row not in bad_rows
        if good == limit:
            return replace(shard, num_samples=row + 1), [one for one in bad if 0 <= one.row <= row]
    return shard, bad


def first_sample(layout: Layout, spec: DatasetSpec) -> Sample:
    """Return the first usable sample of a layout, after decoding its image; a check before anything runs.

    Raises:
        UserError: none of the first samples can be used.
    """
    problems: dict[tuple[str, int], BadSample] = {}
    for place, read in _first_reads(layout, spec):
        try:
            sample = read()
            decode_image(sample.image, sample.key)
            return sample
        except BadSample as bad:
            problems[place] = bad  # of a tar that is scanned again, in place of what its beginning lacked
    raise UserError(f"{layout.paths[0]}: none of the first samples can be used{_why(problems, layout, spec)}")


def _why(problems: Mapping[tuple[str, int], BadSample], layout: Layout, spec: DatasetSpec) -> str:
    """Return why none of the first samples can be used, and what to do about the first one."""
    if not problems:
        return f": {layout.reader.expected}" if layout.reader and layout.reader.expected else ""
    places = ", ".join(f"{language} in {source}" for language, source in spec.texts.items())
    hints = {
        "missing_caption": f"; expected captions {places}: set texts to their location",
        "unsafe_path": "; paths must be relative to image_root; absolute ones and addresses need image_root: /",
    }
    first = next(iter(problems.values()))
    counts = most_common(Counter(bad.reason for bad in problems.values()))
    return f": {counts}; the first is {first}{hints.get(first.reason, '')}"


def _first_reads(layout: Layout, spec: DatasetSpec) -> Iterator[tuple[tuple[str, int], Callable[[], Sample]]]:
    """Yield the file and the number of each of the first samples, and a function that reads it."""
    if not layout.reader:
        entries = enumerate(islice(layout.entries(spec), PEEK))
        yield from ((("", number), partial(entry.read, spec)) for number, entry in entries)
        return
    for path in layout.paths[:PEEK_SHARDS]:
        for limit in (PEEK, None):  # the whole shard only if its beginning is not enough, as in an unsorted tar
            reader = layout.reader.open(layout.reader.find(path)[0], spec, Opening(limit=limit))
            yield from (((path, row), partial(reader.read, row)) for row in range(min(PEEK, len(reader))))
            lost = enumerate(reader.lost[:PEEK], start=1)
            yield from (((path, -number), partial(_raise, BadSample(*one))) for number, one in lost)


def _raise(problem: BadSample) -> Sample:
    raise problem
