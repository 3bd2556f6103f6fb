"""Scores on the samples of each group, such as each hospital or camera, that a column of the dataset names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from vfm.base import UserError
from vfm.data import BadSample, Source, open_dataset, require_column
from vfm.interfaces import Context, Evaluated, ImageDataset, ModelResult, TablePanel, TaggedImages
from vfm.statistics import Accuracy

MAX_GROUPS = 50  # more are rather identifiers, with few images each
TITLE = "By"  # of the table, before the column


def open_groups(ctx: Context, data: object, column: str) -> Source:
    """Open the dataset of an evaluation that breaks its scores down by a column.

    Args:
        ctx: Context of the stage.
        data: The dataset.
        column: Column of the samples.

    Raises:
        UserError: If the samples have no such column.
    """
    images = ImageDataset.load(data.linked(data.data)) if isinstance(data, TaggedImages) else data
    if not isinstance(images, ImageDataset):
        raise UserError(f"{ctx.stage}: by: expected images, got a {type(data).__name__}")
    source = open_dataset(images)
    require_column(source.index.spec, column, f"{ctx.stage}: by: {ctx.name_of(images)}")
    return source


def with_groups(ctx: Context, evaluated: Evaluated, source: Source, column: str) -> Evaluated:
    """Add each accuracy on the samples of each group, as `acc1/site=a`, and a table of the first one.

    Wrong answers may be of any group.

    Args:
        ctx: Receives the table.
        evaluated: Results, whose tables have the key of each item.
        source: The samples, with the column.
        column: Name of the column.

    Raises:
        UserError: If there are more than 50 groups.
    """
    groups = {}
    for number in range(len(source)):
        with suppress(BadSample):  # reported by the evaluation
            sample = source.facts(number)
            groups[sample.key] = str(sample.columns[column])
    names = sorted(set(groups.values()))
    if len(names) > MAX_GROUPS:
        some = ", ".join(names[:3])
        raise UserError(
            f"by: column {column!r} has {len(names):,} values, such as {some}; expected at most {MAX_GROUPS}"
        )
    results = {}
    by_model = {}
    for model, result in evaluated.results.items():
        by_model[model] = list(_scores_of_groups(result, groups, column, names))
        results[model] = replace(result, scores=[*result.scores, *by_model[model]])
    if any(by_model.values()):
        ctx.panel(_table(column, by_model))
    return replace(evaluated, results=results)


def _table(column: str, by_model: Mapping[str, Sequence[Accuracy]]) -> TablePanel:
    """Make a table of the first metric, with a row for each group."""
    first = next(iter(by_model.values()))
    metric = first[0].metric.split("/", 1)[0]
    rows: list[list[str | float | int | None]] = []
    for number, score in enumerate(first):
        name, _, group = score.metric.partition("/")
        if name == metric:
            same = [scores[number] for scores in by_model.values()]
            rows.append([group.partition("=")[2], score.num_independent, *map(_in_percent, same)])
    note = "With 95 % intervals. All samples are ranked together. The other metrics are in the table of metrics."
    return TablePanel(title=f"{TITLE} {column}: {metric}", note=note, order=15, columns=["", "n", *by_model], rows=rows)


def _in_percent(score: Accuracy) -> str:
    low, high = score.interval()
    return f"{100 * score.value:.1f} % ({100 * low:.1f} – {100 * high:.1f} %)"


def _scores_of_groups(
    result: ModelResult, groups: Mapping[str, str], column: str, names: list[str]
) -> Iterator[Accuracy]:
    for score in result.scores:
        keys = _keys(result, score) if isinstance(score, Accuracy) else None
        if keys is None or not isinstance(score, Accuracy):
            continue
        group_of = np.array([groups[key] for key in keys])
        for name in names:
            rows = group_of == name
            if rows.any():
                yield replace(
                    score,
                    metric=f"{score.metric}/{column}={name}",
                    correct=score.correct[rows],
                    groups=None if score.groups is None else score.groups[rows],
                    classes=None if score.classes is None else score.classes[rows],
                )


def _keys(result: ModelResult, score: Accuracy) -> list[str] | None:
    """Find the keys of a score's items, by the table with as many rows. A score of some of the items has none."""
    for table in result.predictions.values():
        keys = table.get("key")
        if keys is not None and len(keys) == len(score.correct):
            return list(keys)
    return None
