"""Report and count the samples that an evaluation skips, and refuse a dataset with too many."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vfm.data import BadSample
from vfm.eval.base import ReadSettings
from vfm.interfaces import Context


@dataclass
class BadSamples:
    """Count the bad samples of one dataset.

    Attributes:
        ctx: takes each of them.
        counts: their number by reason.
        first: address of the first one and its reason, for the error; empty without one.
    """

    ctx: Context
    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def skip(self, problem: BadSample, where: str = "") -> None:
        """Report and count a sample.

        Args:
            problem: why it is bad.
            where: its address with the shard, for the error; default: that of `problem`.
        """
        self.first = self.first or f"{where or problem.where} ({problem.reason})"
        self.counts[problem.reason] += 1
        self.ctx.skip(problem.reason, problem.where)

    def check(self, reading: ReadSettings, total: int, items: str = "samples") -> None:
        """Check that few of `total` samples are bad.

        Raises:
            UserError: there are more than `reading` tolerates, or all are.
        """
        reading.check_bad(self.counts, total, items, self.first)
