"""An account that a reader keeps while it reads. Each unit of a source is in a sample, or has a reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from vfm.base import positions

# U ranges, R runs

Numbers = Sequence[int] | NDArray[np.int64]
Unit = Literal["bytes", "entries", "lines", "rows", "records", "images", "annotations"]

USED = "used"
COUNTED = "counted"  # of a file whose number of samples was known, and whose samples were not read
BEYOND = "beyond_num_samples"


@dataclass(frozen=True)
class Runs:
    """Neighbouring units with the same use, as the ledger stores them."""

    starts: NDArray[np.int64]  # (R,)
    stops: NDArray[np.int64]  # (R,)
    codes: NDArray[np.int64]  # (R,), indices into `uses`
    uses: list[str]


@dataclass
class Account:
    """The units of a source in the order in which they were read.

    Attributes:
        source: Path of the file or folder.
        unit: Kind of the units. The entries of a folder are its files and links, at any depth.
        sample: Number of the sample that is being read.
        size: Number of units, counted separately from the samples. None: the source was not read to its end.
    """

    source: str
    unit: Unit
    sample: int = 0
    size: int | None = None
    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)  # number of a sample, or -1 - the index of a reason
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def of_rows(cls, source: str, size: int, unit: Unit = "rows") -> Self:
        """Create the account of a file with a sample in each row."""
        rows = list(range(size))
        return cls(source, unit, size=size, starts=rows, stops=list(range(1, size + 1)), owners=rows)

    @classmethod
    def whole(cls, source: str, unit: Unit, size: int, use: str) -> Self:
        """Create the account of a source with one use."""
        account = cls(source, unit, size=size)
        account.leave(0, size, use)
        return account

    @classmethod
    def of_uses(cls, source: str, unit: Unit, uses: Sequence[str]) -> Self:
        """Create the account of a source from the use of each unit."""
        account = cls(source, unit, size=len(uses))
        start = 0
        for use, group in groupby(uses):
            stop = start + len(list(group))
            account.leave(start, stop, use)
            start = stop
        return account

    def shifted(self, samples: int) -> Self:
        """Copy the account for a source that follows `samples` samples of other sources."""
        owners = [owner if owner < 0 else owner + samples for owner in self.owners]
        return replace(self, owners=owners)

    def give(self, start: int, stop: int, sample: int | None = None) -> None:
        """Record that units belong to a sample.

        Args:
            start: First unit.
            stop: Unit after the last one.
            sample: Number of the sample. Default: the sample that is being read.
        """
        self._add(start, stop, self.sample if sample is None else sample)

    def leave(self, start: int, stop: int, reason: str) -> None:
        """Record that units belong to no sample.

        Args:
            start: First unit.
            stop: Unit after the last one.
            reason: Why they are not used.
        """
        if reason not in self.reasons:
            self.reasons.append(reason)
        self._add(start, stop, -1 - self.reasons.index(reason))

    def _add(self, start: int, stop: int, owner: int) -> None:
        if self.owners and self.owners[-1] == owner and self.stops[-1] == start:
            self.stops[-1] = stop
        else:
            self.starts.append(start)
            self.stops.append(stop)
            self.owners.append(owner)

    def runs(self, problems: Mapping[int, str], num_samples: int | None = None) -> Runs:
        """Determine whether each unit was used, or why not, and join equal neighbours.

        Args:
            problems: Reason of each bad sample.
            num_samples: Number of samples that were needed. Later ones were not used.

        Raises:
            ValueError: If a unit is missing, or was recorded twice.
        """
        uses = sorted({USED, BEYOND, *self.reasons, *problems.values()})
        code_of = positions(uses)
        starts = np.array(self.starts, dtype=np.int64)
        stops = np.array(self.stops, dtype=np.int64)
        owners = np.array(self.owners, dtype=np.int64)
        outcome = np.full(max(owners.max(initial=0), *problems, 0) + 1, code_of[USED])
        outcome[list(problems)] = [code_of[reason] for reason in problems.values()]
        if num_samples is not None:
            outcome[num_samples:] = code_of[BEYOND]
        fixed = np.array([code_of[reason] for reason in self.reasons], dtype=np.int64)
        codes = np.empty(len(owners), dtype=np.int64)
        codes[owners >= 0] = outcome[owners[owners >= 0]]
        codes[owners < 0] = fixed[-1 - owners[owners < 0]]
        if self.size is None:  # the number of units behind the last one is unknown
            end = int(stops.max(initial=0))
            starts = np.append(starts, end)
            stops = np.append(stops, end)
            codes = np.append(codes, code_of[BEYOND])
        if (np.diff(starts) <= 0).any():
            order = np.lexsort((stops, starts))
            starts = starts[order]
            stops = stops[order]
            codes = codes[order]
        check_tiling(starts, stops, int(stops.max(initial=0)) if self.size is None else self.size)
        first = np.flatnonzero(np.diff(codes, prepend=-1))
        last = np.append(first[1:], len(codes)) - 1
        return Runs(starts[first], stops[last] if len(codes) else stops, codes[first], uses)


def check_tiling(starts: Numbers, stops: Numbers, size: int) -> None:
    """Check that sorted ranges cover the units 0 to `size`, each once. A range may be empty.

    Args:
        starts: First unit of each range.
        stops: Unit after the last one of each range.
        size: Number of units.

    Raises:
        ValueError: If a unit is in no range or in two, or a range ends before it starts.
    """
    begins = np.append(np.asarray(starts, dtype=np.int64), size)
    ends = np.insert(np.asarray(stops, dtype=np.int64), 0, 0)
    backwards = np.flatnonzero(ends[1:] < begins[:-1])
    if len(backwards):
        first = backwards[0]
        raise ValueError(f"{ends[first + 1]} to {begins[first]} are a range that ends before it starts")
    wrong = np.flatnonzero(begins != ends)
    if not len(wrong):
        return
    begin, end = begins[wrong[0]], ends[wrong[0]]
    if begin > end:
        raise ValueError(f"{end} to {begin} were not accounted for")
    raise ValueError(f"{begin} to {end} are {'beyond the end' if wrong[0] == len(starts) else 'accounted for twice'}")
