"""Build the index of a user's data. Samples of shards without a known count are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Self

from vfm.base import UserError
from vfm.data.index.index import OFFSETS_FOLDER, BadRow, address_in, write_index
from vfm.data.indexing.arrow_copies import check_copied, cost_of_random_reads, write_copies
from vfm.data.indexing.dataset_panels import add_ledger_panel
from vfm.data.indexing.examination import Examination, Examined, examine_all
from vfm.data.indexing.location_hints import location_hint
from vfm.data.indexing.repeated_keys import RepeatedKeys
from vfm.data.indexing.stages import ImageFiles, Verify
from vfm.data.layouts.layout import Layout
from vfm.data.ledger.account import Account
from vfm.data.ledger.ledger import LEDGER_FILE, LedgerWriter
from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import CURES, UNREACHABLE, BadSample, Sample, count_reasons
from vfm.data.samples.shards import Found, Opening, Shard, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tar.packed_offsets import PACKED_FILE, OffsetsWriter
from vfm.interfaces import Context

MIN_SAMPLES_TO_CHECK = 1000  # with fewer samples, the fraction of bad samples is not meaningful yet
PEEK = 50  # samples of a shard to try before a dataset is reported as unreadable
PEEK_SHARDS = 3  # the first may be empty


@dataclass
class Indexing:
    """A pass over the shards of a dataset. Bad samples are reported, counted and left out."""

    ctx: Context
    spec: DatasetSpec
    max_bad_fraction: float
    name: str  # path or name of the data, for errors
    num_samples: int | None = None  # upper limit
    verify: Verify = True  # read every sample of shards without a known count, or of all shards ("all", "decode")
    workers: int = 0  # processes that read shards. Each reads several remote shards at a time
    shards: list[Shard] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    good: int = 0
    paths: Sequence[str] = ()  # the user's files, of which the last ones are not opened if `num_samples` come before
    repeated: RepeatedKeys = field(default_factory=RepeatedKeys)
    arrow_copy: bool | None = None  # write Arrow copies of tables. None: the stage has no such setting

    @classmethod
    def of(
        cls, config: ImageFiles, ctx: Context, spec: DatasetSpec, paths: Sequence[str], name: str | None = None
    ) -> Self:
        """Create the indexing pass that a stage configures."""
        return cls(
            ctx,
            spec,
            config.max_bad_fraction,
            name or paths[0],
            config.num_samples,
            config.verify,
            config.runtime.num_workers,
            paths=paths,
            arrow_copy=config.arrow_copy,
        )

    def run(
        self,
        directory: Path,
        shards: Iterable[Found],
        total: int | None = None,
        listed: Sequence[Account] = (),
    ) -> int:
        """Write the index into `directory`.

        Args:
            directory: The artifact's folder.
            shards: Each shard with a flag, True if its number of samples is known and False to read it, or a file.
            total: Number of shards, if known.
            listed: Accounts of the files and folders whose samples the shards list, filled while shards are taken.

        Returns:
            The number of usable samples.

        Raises:
            UserError: If there are no usable samples, or too many bad ones, or a part of the data is unaccounted for.
        """
        examination = Examination(self.spec, self.verify, self.num_samples)
        with (
            OffsetsWriter(directory / OFFSETS_FOLDER / PACKED_FILE) as offsets,
            LedgerWriter(directory / LEDGER_FILE, partial(address_in, directory=directory)) as ledger,
            closing(examine_all(examination, shards, self.workers)) as results,
        ):
            for examined in results:
                if self.arrow_copy:
                    check_copied(self.ctx.stage, examined.shard, self.spec)
                offsets.add(examined.offsets)
                problems = self._add(examined)
                # Shards that were written here have no account of their own: the files behind them do.
                if not Path(examined.shard.path).is_relative_to(directory):
                    ledger.add(examined.account, problems, self.shards[-1].num_samples)
                if total or len(self.shards) > 1:
                    self.ctx.progress(len(self.shards), total, "shards", samples=self.good)
                # A dataset that is mostly broken is refused early, but not for the first few samples.
                self._check_bad(MIN_SAMPLES_TO_CHECK)
                if self.num_samples and self.good >= self.num_samples:
                    break
            problems, num_samples = self._problems()
            for account in [*listed, *self._unopened(directory, listed)]:
                ledger.add(account, problems, num_samples)
        add_ledger_panel(self.ctx, ledger.totals)
        self.check_labels()
        self._check_bad(1)
        if not self.good:
            raise UserError(f"{self.ctx.stage}: no samples found in {self._searched(directory)}")
        warn_of_unreachable(self.ctx, self.bad, self.good + len(self.bad))
        # Repeated keys are made unique by the names of their shards.
        if self.repeated.example:
            key, first, second = self.repeated.example
            self.ctx.log(
                f"keys repeat ({key!r} is in {first} and in {second}), so each key begins with its shard's name"
            )
            self.spec = self.spec.model_copy(update={"keys_repeat": True})
        if self.arrow_copy:
            self.spec = write_copies(self.ctx, directory, self.shards, self.spec)
        elif self.arrow_copy is not None and (cost := cost_of_random_reads(self.shards, self.spec)):
            self.ctx.log(cost)
        return write_index(directory, self.shards, self.spec, bad_rows=self.bad)

    @property
    def counts(self) -> Counter[str]:
        """Number of bad samples by reason."""
        return count_reasons(self.bad)

    def check_labels(self) -> None:
        """Check that every label is one of the classes. A single unknown label means wrong class names.

        Raises:
            UserError: If there are unknown labels. The error names the first.
        """
        unknown = [row for row in self.bad if row.reason == "unknown_label"]
        if unknown:
            raise UserError(
                f"{self.ctx.stage}: {len(unknown)} labels do not fit the {len(self.spec.class_names)} class names; the"
                f" first is {unknown[0].where}; correct class_names, or classnames.txt next to the data"
            )

    def _unopened(self, directory: Path, listed: Sequence[Account]) -> Iterator[Account]:
        """Yield an account without units of each file that was not opened, since enough samples came before it."""
        if not self.num_samples:
            return
        # Addresses, since a file may be listed by a relative path and a shard by an absolute one.
        addresses = set()
        for shard in self.shards:
            addresses.add(address_in(shard.path, directory))
        for account in listed:
            addresses.add(address_in(account.source, directory))
        for path in self.paths:
            if address_in(path, directory) not in addresses:
                yield Account(path, "bytes")

    def _problems(self) -> tuple[dict[int, str], int]:
        """Map the number of each bad sample, among the samples of all shards, to its reason, and count the samples."""
        ends = list(accumulate((shard.num_samples for shard in self.shards), initial=0))
        problems = {}
        for row in self.bad:
            if row.row >= 0:
                problems[ends[row.shard] + row.row] = row.reason
        return problems, ends[-1]

    def _add(self, examined: Examined) -> dict[int, str]:
        """Add a shard, and return the reason of each of its bad rows."""
        shard = examined.shard
        number = len(self.shards)
        bad = [BadRow(number, *row) for row in examined.bad]
        self.repeated.add(shard.path, examined.keys)
        if self.num_samples:
            shard, bad = _cut(shard, bad, self.num_samples - self.good)
        problems = {}
        for row in bad:
            self.ctx.skip(row.reason, row.where, lacks_data=row.reason == UNREACHABLE)
            if row.row >= 0:
                problems[row.row] = row.reason
        self.shards.append(shard)
        self.bad += bad
        self.good += shard.num_samples - len(problems)
        return problems

    def _searched(self, directory: Path) -> str:
        """Describe data without samples for the error, with the reason (bad samples, or the expected names)."""
        user_files = [shard.path for shard in self.shards[:3] if not Path(shard.path).is_relative_to(directory)]
        searched = ", ".join(user_files) or self.name
        if self.bad:
            return f"{searched}: {most_common(self.counts)}{self._first_bad}"
        for shard in self.shards:
            expected = shard_format(shard.format).expected
            if expected:
                return f"{searched}: {expected}"
        return searched

    @property
    def _first_bad(self) -> str:
        first = self.bad[0]
        cure = location_hint(first.reason, self.name, self.spec)
        if self.shards[first.shard].format != "tar":  # members of a tar have no other folder
            cure = cure or CURES.get(first.reason, "")
        return f"; the first is {first.where} ({first.reason}){cure}"

    def _check_bad(self, min_samples: int) -> None:
        seen = self.good + len(self.bad)
        if self.bad and seen >= min_samples:
            check_bad(self.ctx.stage, self.counts, seen, self.max_bad_fraction, self._first_bad)


def check_bad(stage: str, bad: Counter[str], seen: int, max_bad_fraction: float, more: str = "") -> None:
    """Check that the fraction of bad samples is tolerated.

    Args:
        stage: Name of the stage, for the error.
        bad: Number of bad samples by reason.
        seen: Number of samples, good and bad.
        max_bad_fraction: Tolerated fraction.
        more: End of the error line.

    Raises:
        UserError: If more samples are bad.
    """
    if bad.total() > max_bad_fraction * seen:
        raise UserError(
            f"{stage}: {bad.total()} of {seen} samples are bad: {most_common(bad)}; more than max_bad_fraction:"
            f" {max_bad_fraction}{more}"
        )


def warn_of_unreachable(ctx: Context, bad: Iterable[BadRow | BadSample], seen: int) -> None:
    """Warn of remote samples whose bytes did not come, if there are any. They may come when the index is made again.

    Args:
        ctx: Context of the stage.
        bad: The bad samples.
        seen: Number of samples, good and bad.
    """
    unreachable = [sample.where for sample in bad if sample.reason == UNREACHABLE]
    if unreachable:
        ctx.warn(
            f"{len(unreachable):,} of {seen:,} samples are left out: they could not be reached, such as"
            f" {unreachable[0]}",
            lacks_data=True,
        )


def most_common(bad: Counter[str]) -> str:
    """Format the three most common reasons for bad samples, with their numbers."""
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
            return replace(shard, num_samples=row + 1), [bad_row for bad_row in bad if 0 <= bad_row.row <= row]
    return shard, bad


def first_sample(layout: Layout, spec: DatasetSpec) -> Sample:
    """Find the first usable sample of a layout, and decode its image. Checks the data before anything runs.

    Raises:
        UserError: If none of the first samples can be used.
    """
    problems: dict[tuple[str, int], BadSample] = {}
    for address, read in _first_reads(layout, spec):
        try:
            sample = read()
            decode_image(sample.image, sample.key)
            return sample
        except BadSample as bad:
            problems[address] = bad  # when a whole tar is scanned, this replaces a problem found in its beginning
    raise UserError(f"{layout.paths[0]}: none of the first samples can be used{_why(problems, layout, spec)}")


def _why(problems: Mapping[tuple[str, int], BadSample], layout: Layout, spec: DatasetSpec) -> str:
    """Explain why none of the first samples can be used, with a hint for the first problem."""
    if not problems:
        expected = layout.reader.expected if layout.reader else ""
        return f": {expected}" if expected else ""
    first = next(iter(problems.values()))
    hint = location_hint(first.reason, layout.paths[0], spec) or CURES.get(first.reason, "")
    return f": {most_common(count_reasons(problems.values()))}; the first is {first}{hint}"


def _first_reads(layout: Layout, spec: DatasetSpec) -> Iterator[tuple[tuple[str, int], Callable[[], Sample]]]:
    """Yield the file and the number of each of the first samples, and a function that reads it."""
    if not layout.reader:
        for number, entry in enumerate(islice(layout.entries(spec), PEEK)):
            yield ("", number), partial(entry.read, spec)
        return
    for path in layout.paths[:PEEK_SHARDS]:
        for limit in (PEEK, None):  # the whole shard is scanned only if its beginning is not enough (unsorted tars)
            reader = layout.reader.open(layout.reader.find(path)[0], spec, Opening(limit=limit))
            for row in range(min(PEEK, len(reader))):
                yield (path, row), partial(reader.read, row)
            for number, (reason, where) in enumerate(reader.lost[:PEEK], start=1):
                yield (path, -number), partial(_raise, BadSample(reason, where))


def _raise(problem: BadSample) -> Sample:
    raise problem
