"""Report and count the samples that an evaluation skips, and reject a dataset with too many."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vfm.data import BadSample
from vfm.data.samples.sample import CURES
from vfm.eval.base import ReadSettings
from vfm.interfaces import Context


@dataclass
class BadSamples:
    """Counts the bad samples of a dataset.

    Attributes:
        ctx: Receives each bad sample.
        counts: Number of bad samples by reason.
        first: Address, reason and cure of the first bad sample, for the error; empty if there is none.
    """

    ctx: Context
    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def skip(self, problem: BadSample, where: str = "") -> None:
        """Report and count a sample.

        Args:
            problem: Why the sample is bad.
            where: Address of the sample including its shard, for the error. Default: the address in `problem`.
        """
        cure = CURES.get(problem.reason, "")
        self.first = self.first or f"{where or problem.where} ({problem.reason}){cure}"
        self.counts[problem.reason] += 1
        self.ctx.skip(problem.reason, problem.where)

    def check(self, reading: ReadSettings, total: int, items: str = "samples") -> None:
        """Check that few samples are bad.

        Args:
            reading: Tolerance of bad samples.
            total: Number of all samples.
            items: Name of the samples in the message.

        Raises:
            UserError: If more samples are bad than `reading` tolerates, or all of them.
        """
        reading.check_bad(self.counts, total, items, self.first)
