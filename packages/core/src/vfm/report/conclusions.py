"""Correct the p-values and intervals of a run's comparisons for their number.

Comparisons on the same items show whether two models differ on these items. Comparisons over seeds show the effect of a
method. The main metric of an evaluation decides between two models, and the further ones describe how they differ. So
there are four kinds of comparisons, and each is corrected for its own number.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vfm.base import number_format
from vfm.interfaces import Comparison, Report
from vfm.report.results import SeedSummary

ALPHA = 0.05  # level of the corrected tests


@dataclass(frozen=True)
class ReportedComparison:
    """A comparison in a report.

    Attributes:
        report: Name of the report.
        test: The comparison.
        unit: Unit of its metric.
        num_seeds: Number of seeds, 0 for a comparison on items.
        main: Whether its metric decides between models (`Report.main_metrics`).
        n: Number of independent items, 0 if it is unknown.
        detectable: Difference that would be clear in 80 % of cases. `corrected` computes it.
    """

    report: str
    test: Comparison
    unit: str = "share"
    num_seeds: int = 0
    main: bool = True
    n: int = 0
    detectable: float = math.nan

    @property
    def is_clear(self) -> bool:
        """Whether the p-value is small. It must be corrected first."""
        return self.test.p_value <= ALPHA

    @property
    def is_known(self) -> bool:
        """Whether there is a p-value. It is NaN if a score is NaN."""
        return not math.isnan(self.test.p_value)

    @property
    def kind(self) -> tuple[bool, bool]:
        """Kind of the comparison.

        It is over seeds or on items, and main or further.
        """
        return bool(self.num_seeds), self.main


def findings_of(reports: Mapping[str, Report]) -> list[ReportedComparison]:
    """List the comparisons on the same items of reports by name."""
    findings = []
    for name, report in reports.items():
        metrics = {metric.name: metric for metric in report.metrics}
        for test in report.comparisons:
            metric = metrics.get(test.metric)
            unit, n = (metric.unit, metric.n) if metric else ("share", 0)
            findings.append(ReportedComparison(name, test, unit, main=test.metric in report.main_metrics, n=n))
    return findings


def findings_over_seeds(summaries: Sequence[SeedSummary]) -> list[ReportedComparison]:
    """List the comparisons over seeds."""
    findings = []
    for summary in summaries:
        test = summary.comparison
        if test:
            number = len(summary.values)
            findings.append(ReportedComparison(summary.report, test, summary.unit, number, summary.main))
    return findings


def corrected(findings: Sequence[ReportedComparison]) -> list[ReportedComparison]:
    """Correct p-values and intervals by Holm's procedure, separately for each kind of comparison.

    An interval then excludes zero exactly if the p-value is small.
    """
    families: defaultdict[tuple[bool, bool], list[int]] = defaultdict(list)
    for number, finding in enumerate(findings):
        families[finding.kind].append(number)
    fixed = list(findings)
    for numbers in families.values():
        family = _corrected_family([findings[number] for number in numbers])
        for number, finding in zip(numbers, family, strict=True):
            fixed[number] = finding
    return fixed


def _corrected_family(family: Sequence[ReportedComparison]) -> Iterator[ReportedComparison]:
    from vfm.statistics import corrected_interval, detectable_difference, holm  # scipy is not installed for curation

    raw = [finding.test.p_value for finding in family]
    counts = _counts(family)
    num_tests = math.fsum(count for count, finding in zip(counts, family, strict=True) if finding.is_known)
    for finding, p_value in zip(family, holm(raw, counts).tolist(), strict=True):
        test = finding.test
        ends = (test.low, test.high)
        low, high = corrected_interval(test.difference, ends, test.p_value, raw, counts, num_seeds=finding.num_seeds)
        changes = {"p_value": p_value, "low": low, "high": high}
        detectable = detectable_difference(ends, num_tests=num_tests, num_seeds=finding.num_seeds)
        yield replace(finding, test=test.model_copy(update=changes), detectable=detectable)


def _counts(family: Sequence[ReportedComparison]) -> list[float]:
    """Count each comparison as its tests. A test that an `eval.ablation` repeats counts once with its repetition."""
    keys = [tuple(finding.test.model_dump(exclude={"metric"}).values()) for finding in family]
    repeated = Counter(keys)
    return [finding.test.counts_as / repeated[key] for finding, key in zip(family, keys, strict=True)]


def corrections(findings: Sequence[ReportedComparison]) -> list[str]:
    """Write the sentence about the correction, if there are comparisons."""
    families: defaultdict[tuple[bool, bool], list[ReportedComparison]] = defaultdict(list)
    for finding in findings:
        if finding.is_known:
            families[finding.kind].append(finding)
    parts = []
    for (over_seeds, main), family in sorted(families.items(), key=lambda item: (item[0][0], not item[0][1])):
        plural = "" if len(family) == 1 else "s"
        where = "over seeds" if over_seeds else "on the same items"
        num_tests = math.fsum(_counts(family))
        fewer = (
            f", which count as {number_format.number(round(num_tests, 1))}" if num_tests < len(family) - 0.05 else ""
        )
        count = number_format.number(len(family))
        parts.append(f"{count} {'main' if main else 'further'} comparison{plural} {where}{fewer}")
    if not parts:
        return []
    return [f"p-values and the intervals of differences are corrected for {' and, apart, for '.join(parts)} (Holm)."]
