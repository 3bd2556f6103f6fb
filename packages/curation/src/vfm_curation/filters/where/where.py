"""Work of the filter `where`: the texts for which a condition holds, and what each part of the condition drops."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.plugin import TablePanel, UserError
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.where.evaluation import bound_of, masks, values_of
from vfm_curation.filters.where.expression import Cut, Expression
from vfm_curation.filters.where.stages import IMAGE_NAMES, STORED, TEXT_NAMES, Where

Bools = NDArray[np.bool_]


def condition_holds(config: Where, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask for each shard: the texts for which the whole condition holds. A panel says what each part drops.

    A quantile or a share takes another pass over the columns, and 8 bytes of memory for each remaining text.

    Raises:
        UserError: If a column has no value at all, or values have the wrong type.
    """
    expression = config.expression
    table_of = partial(_table, expression, run)
    try:
        bounds = {name: _bound(cut, run, table_of) for name, cut in expression.cuts.items()}
        effects = Effects(expression, bounds)
        for shard in range(run.num_shards):
            table = table_of(shard)
            yield effects.add(table, masks(expression, table, len(table), bounds))
    except ValueError as error:
        raise UserError(f"{config.reason}: {error}") from None
    missing = ", ".join(effects.columns_without_values)
    if missing:
        raise UserError(f"{config.reason}: no text of '{run.pool}' has a value {missing}")
    run.details = effects.panel(config.reason).model_dump(mode="json")


def _bound(cut: Cut, run: FilterRun, table_of: partial[pa.Table]) -> float:
    return bound_of(cut, np.concatenate([values_of(cut, table_of(shard)) for shard in range(run.num_shards)]))


def _table(expression: Expression, run: FilterRun, shard: int) -> pa.Table:
    """Collect the columns of an expression for the remaining texts of a shard, and their `language`."""
    names = expression.names
    measured = expression.names & {*IMAGE_NAMES, "url"}
    own = {name: STORED + name.removeprefix(STORED) for name in sorted(names - TEXT_NAMES - measured)}
    of_text = sorted((names & TEXT_NAMES) | {"language"})
    texts = run.remaining.texts(shard, [*of_text, "row", *own.values()])
    columns = {name: texts[name] for name in of_text}
    if measured:
        images = run.remaining.images(shard)
        at = np.searchsorted(images["unit"].to_numpy(), texts["row"].to_numpy())
        columns |= {name: images["address" if name == "url" else name].take(at) for name in sorted(measured)}
    return pa.table(columns | {name: texts[column] for name, column in own.items()})


class Effects:
    """Counts what each condition of an expression drops, alone and together with the others.

    Attributes:
        num_texts: Number of texts.
        holds: For each condition, texts for which it holds.
        alone: For each condition, texts that no other condition drops.
        missing: For each condition, texts that it drops because a value is missing.
    """

    def __init__(self, expression: Expression, bounds: dict[str, float]) -> None:
        count = len(expression.conditions)
        self.expression = expression
        self.bounds = bounds
        self.num_texts = 0
        self.holds, self.alone, self.missing = np.zeros((3, count), dtype=np.int64)
        self.languages: set[str] = set()
        self.languages_left: list[set[str]] = [set() for _ in range(count)]
        self.have_values: set[str] = set()

    def add(self, table: pa.Table, conditions: list[pa.Array]) -> Bools:
        """Add a shard, and compute the texts for which all conditions hold."""
        passes = np.array([pc.fill_null(mask, False).to_numpy(zero_copy_only=False) for mask in conditions])  # (K, M)
        num_failed = (~passes).sum(axis=0)
        self.num_texts += len(table)
        self.holds += passes.sum(axis=1)
        self.alone += (~passes & (num_failed == 1)).sum(axis=1)
        self.missing += [mask.null_count for mask in conditions]
        self.languages |= set(table["language"].unique().to_pylist())
        for left, mask in zip(self.languages_left, passes, strict=True):
            left |= set(table["language"].filter(pa.array(mask)).unique().to_pylist())
        self.have_values |= {name for name in table.column_names if table[name].null_count < len(table)}
        result: Bools = num_failed == 0
        return result

    @property
    def columns_without_values(self) -> list[str]:
        """Columns in which no text has a value, most likely because their name is wrong."""
        return sorted(self.expression.names - self.have_values) if self.num_texts else []

    def panel(self, title: str) -> TablePanel:
        """Build the table of the conditions."""
        rows: list[list[str | float | int | None]] = []
        for number, condition in enumerate(self.expression.conditions):
            lost = sorted(self.languages - self.languages_left[number])
            numbers = (int(counts[number]) for counts in (self.holds, self.alone, self.missing))
            rows.append([condition, *numbers, ", ".join(lost) or "none"])
        bounds = "".join(f" {name}: {bound:.6g}." for name, bound in self.bounds.items())
        note = (
            f"Of {self.num_texts:,} texts, those for which each condition holds, and those that it alone drops.{bounds}"
        )
        columns = ["condition", "texts it holds for", "dropped by it alone", "value missing", "languages lost"]
        return TablePanel(title=f"Conditions of {title}", note=note, order=12, columns=columns, rows=rows)
