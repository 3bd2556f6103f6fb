"""Say in words which model is better, or how large a difference the items could show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vfm.base import metric_in_words, number_format
from vfm.report.conclusions import ReportedComparison

MAX_DECISIONS = 6  # sentences on main metrics
MAX_NAMED = 4  # further metrics of one pair of models in a sentence


def decisions(findings: Sequence[ReportedComparison]) -> list[str]:
    """Write sentences about comparisons with corrected p-values, the main metrics first.

    With several seeds, they are about the effect of a method, and the comparisons of single seeds are left out. With
    one seed, they are about the items. Items show no gain of a method.
    """
    over_seeds = []
    on_items = []
    for finding in findings:
        if finding.is_known and finding.num_seeds:
            over_seeds.append(finding)
        elif finding.is_known:
            on_items.append(finding)
    if over_seeds:
        on_items = [finding for finding in on_items if "@" not in finding.report]
    main = []
    further = []
    for finding in _once(over_seeds + on_items):
        if finding.main:
            main.append(finding)
        elif finding.is_clear:
            further.append(finding)
    main.sort(key=lambda finding: not finding.is_clear)
    lines = list(map(in_words, main[:MAX_DECISIONS]))
    rest = main[MAX_DECISIONS:]
    if rest:
        clear = sum(finding.is_clear for finding in rest)
        lines.append(f"{number_format.number(len(rest))} more comparisons of main metrics, {clear} of them clear.")
    lines += _further(further)
    if any(finding.is_clear for finding in on_items):
        lines.append("Whether a method makes the difference needs several seeds.")
    return lines


def _once(findings: Sequence[ReportedComparison]) -> list[ReportedComparison]:
    """Leave out tests that an `eval.ablation` repeats under another name of the metric."""
    metrics: dict[tuple[object, ...], str] = {}
    once = []
    for finding in findings:
        key = (finding.main, *finding.test.model_dump(exclude={"metric"}).values())
        if metrics.setdefault(key, finding.test.metric) == finding.test.metric:
            once.append(finding)
    return once


def in_words(finding: ReportedComparison) -> str:
    """Describe a main comparison in a sentence, or in two if it is not clear."""
    test = finding.test
    change = f"{metric_in_words(test.metric)} {_signed(test.difference, finding.unit)}"
    ends = f"({number_format.change(test.low, finding.unit)} to {number_format.change(test.high, finding.unit)})"
    where = f"{finding.num_seeds} seeds" if finding.num_seeds else _items(finding.n)
    if not finding.is_clear:
        line = f"{finding.report}: {where} do not distinguish {test.model} from {test.baseline}: {change} {ends}."
        if not (math.isfinite(finding.detectable) and finding.detectable > 0):
            return line
        return f"{line} A difference of {in_points(finding.detectable, finding.unit)} would be seen in 80 % of cases."
    if finding.num_seeds:
        return f"{finding.report}: over {where}, {test.model} changes {change} {ends} against {test.baseline}."
    verdict = "differs from"
    if finding.unit == "share":
        verdict = "is better than" if test.difference > 0 else "is worse than"
    return f"{finding.report}: {test.model} {verdict} {test.baseline} on {where}: {change} {ends}."


def in_points(size: float, unit: str) -> str:
    """Write the size of a difference with its unit: "2.3 points"."""
    return _signed(size, unit).removeprefix("+")


def _further(clear: Sequence[ReportedComparison]) -> Iterator[str]:
    """Describe the clear differences of further metrics, in a line for each pair of models."""
    pairs: dict[tuple[str, str, str], list[str]] = {}
    for finding in clear:
        test = finding.test
        changes = pairs.setdefault((finding.report, test.model, test.baseline), [])
        changes.append(f"{metric_in_words(test.metric)} {number_format.change(test.difference, finding.unit)}")
    for (report, model, baseline), changes in pairs.items():
        more = len(changes) - MAX_NAMED
        named = changes[:MAX_NAMED] + ([f"{more} more"] if more > 0 else [])
        yield f"{report}: further clear differences of {model} from {baseline}: {', '.join(named)}."


def _items(n: int) -> str:
    return f"these {number_format.number(n)} items" if n else "these items"


def _signed(value: float, unit: str) -> str:
    name = "points" if unit in number_format.PERCENT_UNITS else unit
    return f"{number_format.change(value, unit)} {name}".rstrip()
