"""Conclusions from the comparisons of a run or a page: p-values and intervals corrected for their number, in words.

Comparisons on the same items show whether two models differ on these items. Comparisons over seeds show the effect of a
method. The questions differ, so each kind is corrected for its own number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vfm.base import metric_in_words, number_format
from vfm.interfaces import Comparison, Report
from vfm.report.results import SeedSummary

ALPHA = 0.05  # level of the corrected tests
MAX_NAMED = 4  # metrics of one pair of models in a sentence


@dataclass(frozen=True)
class ReportedComparison:
    """A comparison in a report, with the unit of its metric and, if it is over seeds, their number."""

    report: str
    test: Comparison
    unit: str = "share"
    num_seeds: int = 0

    @property
    def is_clear(self) -> bool:
        """Whether the p-value, which must be corrected first, is small."""
        return self.test.p_value <= ALPHA


def findings_of(reports: Mapping[str, Report]) -> list[ReportedComparison]:
    """List the comparisons on the same items of reports by name."""
    findings = []
    for name, report in reports.items():
        units = {metric.name: metric.unit for metric in report.metrics}
        for test in report.comparisons:
            findings.append(ReportedComparison(name, test, units.get(test.metric, "share")))
    return findings


def findings_over_seeds(summaries: Sequence[SeedSummary]) -> list[ReportedComparison]:
    """List the comparisons over seeds."""
    compared = [(summary, summary.comparison) for summary in summaries if summary.comparison]
    return [ReportedComparison(mean.report, test, mean.unit, len(mean.values)) for mean, test in compared]


def corrected(findings: Sequence[ReportedComparison]) -> list[ReportedComparison]:
    """Correct p-values and intervals by Holm's procedure, separately for comparisons on items and over seeds.

    An interval then excludes zero exactly if the p-value is small.
    """
    if not findings:
        return []
    from vfm.statistics import corrected_interval, holm  # needs scipy, which is not installed just for curation

    families = {}
    for over_seeds in (False, True):
        families[over_seeds] = [finding.test.p_value for finding in findings if bool(finding.num_seeds) == over_seeds]
    p_values = {over_seeds: iter(holm(family)) for over_seeds, family in families.items()}
    fixed = []
    for finding in findings:
        test = finding.test
        over_seeds = bool(finding.num_seeds)
        low, high = corrected_interval(
            test.difference, (test.low, test.high), test.p_value, families[over_seeds], num_seeds=finding.num_seeds
        )
        changes = {"p_value": float(next(p_values[over_seeds])), "low": low, "high": high}
        fixed.append(replace(finding, test=test.model_copy(update=changes)))
    return fixed


def corrections(findings: Sequence[ReportedComparison]) -> list[str]:
    """Write the sentence about the correction, if there are comparisons."""
    known = _known(findings)
    over_seeds = sum(bool(finding.num_seeds) for finding in known)
    counts = [(len(known) - over_seeds, "on the same items"), (over_seeds, "over seeds")]
    named = [f"{number_format.number(count)} {_comparisons(count)} {kind}" for count, kind in counts if count]
    if not named:
        return []
    return [f"p-values and the intervals of differences are corrected for {' and for '.join(named)} (Holm)."]


def _known(findings: Sequence[ReportedComparison]) -> list[ReportedComparison]:
    """Select the comparisons with a p-value, which is NaN if a score is NaN."""
    return [finding for finding in findings if not math.isnan(finding.test.p_value)]


def conclusions(findings: Sequence[ReportedComparison]) -> list[str]:
    """Write sentences about comparisons with corrected p-values.

    With several seeds, they are about the effect of a method, and the comparisons of single seeds are left out. With
    one seed, they are about items on which two models differ, which is not a gain of a method.
    """
    seeds = [finding for finding in _known(findings) if finding.num_seeds]
    items = [finding for finding in _known(findings) if not finding.num_seeds and not (seeds and "@" in finding.report)]
    lines: list[str] = []
    if seeds:
        lines += _of_family(seeds, "over the seeds", "these seeds do not separate the methods")
    if items:
        lines += _of_family(items, "on the same items", "these items do not separate the models")
        if any(finding.is_clear for finding in items):
            lines.append("Whether a method makes the difference needs several seeds.")
    return lines


def _of_family(findings: Sequence[ReportedComparison], kind: str, otherwise: str) -> Iterator[str]:
    clear = [finding for finding in findings if finding.is_clear]
    if not clear:
        if len(findings) == 1:
            which = "The only comparison"
        else:
            which = f"Of {len(findings)} comparisons"
        none = "is not clear" if len(findings) == 1 else "none is clear"
        yield f"{which} {kind} {none} (corrected p at most {ALPHA}): {otherwise}."
    pairs = dict.fromkeys((finding.report, finding.test.model, finding.test.baseline) for finding in clear)
    for report, model, baseline in pairs:
        same = [
            finding
            for finding in clear
            if (finding.report, finding.test.model, finding.test.baseline) == (report, model, baseline)
        ]
        changes = [
            f"{metric_in_words(finding.test.metric)} {number_format.change(finding.test.difference, finding.unit)}"
            for finding in same
        ]
        more = len(changes) - MAX_NAMED
        changes = changes[:MAX_NAMED]
        if more > 0:
            changes.append(f"{more} more")
        if same[0].num_seeds:
            yield f"{report}: over {same[0].num_seeds} seeds, {model} changes {', '.join(changes)} against {baseline}."
        else:
            yield f"{report}: {model} and {baseline} differ on these items: {', '.join(changes)}."


def _comparisons(count: int) -> str:
    if count == 1:
        return "comparison"
    return "comparisons"
