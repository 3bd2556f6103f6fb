"""What the comparisons of a run or a page say: p-values corrected for their number, and sentences.

Comparisons on the same items say whether two models differ on these items. Those over seeds say what a method does. The
questions differ, so each kind is corrected for its own number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vfm.base import number_format
from vfm.interfaces import Comparison, Report
from vfm.report.results import SeedSummary

ALPHA = 0.05
MAX_NAMED = 4  # metrics of one pair of models in a sentence


@dataclass(frozen=True)
class ReportedComparison:
    """A comparison of a report, with the unit of its metric and, if it is one over seeds, their number."""

    report: str
    test: Comparison
    unit: str = "share"
    num_seeds: int = 0

    @property
    def is_clear(self) -> bool:
        """Whether the p-value, which is to be corrected, is small."""
        return self.test.p_value <= ALPHA


def findings_of(reports: Mapping[str, Report]) -> list[ReportedComparison]:
    """Return the comparisons on the same items of reports by name."""
    units = {(name, metric.name): metric.unit for name, report in reports.items() for metric in report.metrics}
    return [
        ReportedComparison(name, test, units.get((name, test.metric), "share"))
        for name, report in reports.items()
        for test in report.comparisons
    ]


def findings_over_seeds(summaries: Sequence[SeedSummary]) -> list[ReportedComparison]:
    """Return the comparisons over seeds."""
    return [
        ReportedComparison(one.report, one.comparison, one.unit, len(one.values)) for one in summaries if one.comparison
    ]


def corrected(findings: Sequence[ReportedComparison]) -> list[ReportedComparison]:
    """Return comparisons with p-values corrected by Holm's procedure, those on items and those over seeds apart."""
    if not findings:
        return []
    from vfm.statistics import holm  # needs scipy, which a machine for curation lacks

    p_values = {
        seeds: iter(holm([one.test.p_value for one in findings if bool(one.num_seeds) == seeds]))
        for seeds in (False, True)
    }
    return [
        replace(one, test=one.test.model_copy(update={"p_value": float(next(p_values[bool(one.num_seeds)]))}))
        for one in findings
    ]


def corrections(findings: Sequence[ReportedComparison]) -> list[str]:
    """Return the sentence on the correction, if there are comparisons."""
    made = _made(findings)
    over_seeds = sum(bool(one.num_seeds) for one in made)
    counts = [(len(made) - over_seeds, "on the same items"), (over_seeds, "over seeds")]
    named = [f"{number_format.number(count)} {_comparisons(count)} {kind}" for count, kind in counts if count]
    if not named:
        return []
    return [f"p-values are corrected for {' and for '.join(named)} (Holm); the intervals of differences are not."]


def _made(findings: Sequence[ReportedComparison]) -> list[ReportedComparison]:
    """Return the comparisons that could be made: of scores that are NaN the p-value is NaN too."""
    return [one for one in findings if not math.isnan(one.test.p_value)]


def conclusions(findings: Sequence[ReportedComparison]) -> list[str]:
    """Return sentences on what the comparisons say, whose p-values are corrected.

    With several seeds that is what a method does, and the comparisons of single seeds are left out. With one seed it is
    on which items two models differ, which is no gain of a method.
    """
    seeds = [one for one in _made(findings) if one.num_seeds]
    items = [one for one in _made(findings) if not one.num_seeds and not (seeds and "@" in one.report)]
    lines: list[str] = []
    if seeds:
        lines += _of_family(seeds, "over the seeds", "these seeds do not separate the methods")
    if items:
        lines += _of_family(items, "on the same items", "these items do not separate the models")
        if any(one.is_clear for one in items):
            lines.append("Whether a method makes the difference needs several seeds.")
    return lines


def _of_family(findings: Sequence[ReportedComparison], kind: str, otherwise: str) -> Iterator[str]:
    clear = [one for one in findings if one.is_clear]
    if not clear:
        which = "The only comparison" if len(findings) == 1 else f"Of {len(findings)} comparisons"
        none = "is not clear" if len(findings) == 1 else "none is clear"
        yield f"{which} {kind} {none} (corrected p at most {ALPHA}): {otherwise}."
    pairs = dict.fromkeys((one.report, one.test.model, one.test.baseline) for one in clear)
    for report, model, baseline in pairs:
        same = [one for one in clear if (one.report, one.test.model, one.test.baseline) == (report, model, baseline)]
        changes = [f"{one.test.metric} {number_format.change(one.test.difference, one.unit)}" for one in same]
        more = len(changes) - MAX_NAMED
        changes = [*changes[:MAX_NAMED], *([f"{more} more"] if more > 0 else [])]
        if same[0].num_seeds:
            yield f"{report}: over {same[0].num_seeds} seeds, {model} changes {', '.join(changes)} against {baseline}."
        else:
            yield f"{report}: {model} and {baseline} differ on these items: {', '.join(changes)}."


def _comparisons(count: int) -> str:
    return "comparison" if count == 1 else "comparisons"
