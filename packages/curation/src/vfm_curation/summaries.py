"""Collect the summary of each shard with its bad samples, and report the progress of a stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from vfm.plugin import Context, UserError
from vfm_curation.shard_files import made_from

DAMAGED = "damaged_shard"  # reason of a shard that cannot be read
NUM_BAD_SHOWN = 20  # bad samples of a shard that are reported one by one


@dataclass
class TaskSummary:
    """Result that a task over texts returns for its shard."""

    num_texts: int = 0
    num_lost: int = 0  # samples of the shard if it cannot be read
    lost_shard: int | None = None  # its number in that case
    bad: Counter[str] = field(default_factory=Counter)  # bad samples by reason
    bad_shown: list[tuple[str, str]] = field(default_factory=list)  # (reason, where) of the first bad samples

    def skip(self, reason: str, where: str) -> None:
        """Count a bad sample."""
        self.bad[reason] += 1
        if len(self.bad_shown) < NUM_BAD_SHOWN:
            self.bad_shown.append((reason, where))

    def lose(self, shard: int, num_samples: int, line: str) -> None:
        """Count an unreadable shard and its samples. It is listed first, however many bad samples there are."""
        self.lost_shard = shard
        self.num_lost += num_samples
        self.bad[DAMAGED] += 1
        self.bad_shown.insert(0, (DAMAGED, line))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Restore a summary whose `vars` were written as JSON."""
        shown = [(reason, where) for reason, where in record["bad_shown"]]
        return cls(**{**record, "bad": Counter(record["bad"]), "bad_shown": shown})


B = TypeVar("B", bound=TaskSummary)


@dataclass
class Lost:
    """Limit of the samples lost in unreadable shards."""

    total: int
    max_bad_fraction: float
    count: int = 0
    errors: dict[int, str] = field(default_factory=dict)  # by the number of the shard

    @property
    def hash(self) -> str:
        """Hash of the lost shards, empty if there are none.

        It depends neither on their order nor on their errors, which may have a time or the number of a request.
        """
        return made_from(*sorted(self.errors)) if self.errors else ""

    def add(self, summary: TaskSummary) -> None:
        """Add the samples of a shard.

        Raises:
            UserError: If too many samples are lost. The line names the shard.
        """
        line = next(where for reason, where in summary.bad_shown if reason == DAMAGED)
        assert summary.lost_shard is not None
        self.count += summary.num_lost
        self.errors[summary.lost_shard] = line
        if self.count > self.max_bad_fraction * self.total:
            raise UserError(
                f"{line} ({self.count} of {self.total} samples are lost, max_bad_fraction is {self.max_bad_fraction:g})"
            )


def with_progress(
    ctx: Context,
    summaries: Iterable[B],
    num_shards: int,
    lost: Lost | None = None,
    **shown: Callable[[], Any],
) -> Iterator[B]:
    """Yield the summaries, and report shards, texts a second, time left and bad samples to the context.

    A warning counts the samples of shards that cannot be read.

    Args:
        ctx: Context of the running stage.
        summaries: Summaries that `run_shards` yields.
        num_shards: Number of summaries to come.
        lost: Limit of the samples lost in unreadable shards.
        shown: Functions that return further numbers to show, called after the consumer has processed a summary.
    """
    num_texts = 0
    begun = time.monotonic()
    for done, summary in enumerate(summaries, 1):
        if lost and summary.num_lost:
            lost.add(summary)
        yield summary
        for reason, where in summary.bad_shown:
            ctx.skip(reason, where, lacks_data=reason == DAMAGED)
        num_shown = Counter(reason for reason, _ in summary.bad_shown)
        ctx.bad.update(summary.bad - num_shown)
        num_texts += summary.num_texts
        # A clock may not advance between two calls.
        seconds = max(1e-9, time.monotonic() - begun)
        times = {
            "texts_per_second": round(num_texts / seconds),
            "eta_seconds": round(seconds * (num_shards / done - 1)),
        }
        extra = {name: value() for name, value in shown.items()}
        ctx.progress(done, num_shards, "shards", **times, **extra)
    if lost and lost.count:
        ctx.warn(
            f"{lost.count:,} of {lost.total:,} samples are left out: {len(lost.errors)} of {num_shards} shards cannot"
            f" be read, such as {min(lost.errors.values())}",  # the same whatever the order of the shards
            lacks_data=True,
        )
