"""Find the texts for which a condition holds, and count what each part of the condition drops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data import one_array
from vfm.plugin import TablePanel, UserError
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.where.entry_pairs import EntryPairs, PoolMatches
from vfm_curation.filters.where.evaluation import bound_of, masks, values_of
from vfm_curation.filters.where.expression import Cut, Expression
from vfm_curation.filters.where.stages import IMAGE_NAMES, STORED, TEXT_NAMES, Where

Bools = NDArray[np.bool_]
TOGETHER = "all together"


def condition_holds(config: Where, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask for each shard: the texts for which the whole condition holds. A panel says what each part drops.

    A quantile or a share takes another pass over the columns, and 8 bytes of memory for each remaining text.

    Raises:
        UserError: If a column has no value at all, or values have the wrong type.
    """
    expression = config.expression
    try:
        bounds = {name: _bound(cut, run) for name, cut in expression.cuts.items()}
        matches = PoolMatches.of_filter(config, run)
        effects = Effects(expression, bounds, matches.num_entries if matches else 0)
        for shard in range(run.num_shards):
            table, languages = _table(expression.names, run, shard)
            pairs = matches.pairs(run, shard) if matches else None
            yield effects.add(table, masks(expression, table, len(languages), bounds), languages, pairs)
    except ValueError as error:
        raise UserError(f"{config.reason}: {error}") from None
    missing = ", ".join(effects.columns_without_values)
    if missing:
        raise UserError(f"{config.reason}: no text of '{run.pool}' has a value {missing}")
    if matches and effects.num_not_matched:
        run.ctx.warn(f"{config.reason}: {matches.warning(run, effects.num_not_matched, effects.num_texts)}")
    run.details = effects.panel(config.reason).model_dump(mode="json")


def _bound(cut: Cut, run: FilterRun) -> float:
    tables = (_table(cut.names, run, shard) for shard in range(run.num_shards))
    return bound_of(cut, np.concatenate([values_of(cut, table) for table, _ in tables]))


def _table(names: frozenset[str], run: FilterRun, shard: int) -> tuple[pa.Table, pa.DictionaryArray]:
    """Collect columns of an expression, and the languages, for the remaining texts of a shard."""
    measured = names & {*IMAGE_NAMES, "url"}
    columns_of = {name: name for name in sorted(names & TEXT_NAMES)}
    for name in sorted(names - TEXT_NAMES - measured):
        columns_of[name] = STORED + name.removeprefix(STORED)
    # A column may have two names in a condition: `score` and `stored.score`.
    texts = run.survivors.remaining(shard, list({*columns_of.values(), "row", "language"}))
    columns = {name: texts[column] for name, column in columns_of.items()}
    if "language" in columns:
        columns["language"] = columns["language"].cast(pa.string())
    if measured:
        images = run.remaining.images(shard)
        at = np.searchsorted(images["unit"].to_numpy(), texts["row"].to_numpy())
        for name in sorted(measured):
            columns[name] = images["address" if name == "url" else name].take(at)
    return pa.table(columns), one_array(texts["language"])


def _as_bools(mask: pa.Array | pa.ChunkedArray) -> Bools:
    """Convert a mask, in which a missing value is False. NumPy unpacks the bits many times as fast as Arrow."""
    array = one_array(pc.fill_null(mask, False))
    bits = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    unpacked = np.unpackbits(bits, count=array.offset + len(array), bitorder="little")
    bools: Bools = unpacked[array.offset :].view(np.bool_)
    return bools


class Effects:
    """Counts what each condition of an expression drops, alone and together with the others.

    The last row of each array is of all conditions together.

    Attributes:
        num_texts: Number of texts.
        holds: For each condition, texts for which it holds.
        alone: For each condition, texts that no other condition drops.
        missing: For each condition, texts that it drops because a value is missing.
        entries: Which entries the texts have, (num_entries,), if there are matches.
        entries_left: For each condition, which entries the texts have for which it holds.
        num_not_matched: Texts that the matches leave out.
    """

    def __init__(self, expression: Expression, bounds: dict[str, float], num_entries: int = 0) -> None:
        count = len(expression.conditions)
        self.expression = expression
        self.bounds = bounds
        self.num_texts = 0
        self.holds = np.zeros(count + 1, np.int64)
        self.alone, self.missing = np.zeros((2, count), np.int64)
        self.languages: set[str] = set()
        self.languages_left: list[set[str]] = [set() for _ in range(count + 1)]
        self.entries = np.zeros(num_entries, np.bool_)
        self.entries_left = np.zeros((count + 1, num_entries), np.bool_)
        self.num_not_matched = 0
        self.have_values: set[str] = set()

    def add(
        self,
        table: pa.Table,
        conditions: list[pa.Array],
        languages: pa.DictionaryArray,
        pairs: EntryPairs | None = None,
    ) -> Bools:
        """Add a shard, and compute the texts for which all conditions hold."""
        passes = list(map(_as_bools, conditions))  # K of (M,)
        whole: Bools = np.logical_and.reduce(passes)
        num_failed = np.zeros(len(languages), np.int16)
        for passed in passes:
            num_failed += ~passed
        self.num_texts += len(languages)
        self.holds[-1] += np.count_nonzero(whole)
        for number, passed in enumerate(passes):
            self.holds[number] += np.count_nonzero(passed)
            self.alone[number] += np.count_nonzero(~passed & (num_failed == 1))
            self.missing[number] += conditions[number].null_count
        self._add_languages(languages, (*passes, whole))
        if pairs:
            self.num_not_matched += pairs.num_not_matched
            self.entries[pairs.ids] = True
            for entries, passed in zip(self.entries_left, (*passes, whole), strict=True):
                entries[pairs.ids[passed[pairs.texts]]] = True
        for name in table.column_names:
            if table[name].null_count < len(languages):
                self.have_values.add(name)
        return whole

    def _add_languages(self, languages: pa.DictionaryArray, masks: Iterable[Bools]) -> None:
        names = np.array(languages.dictionary.to_pylist(), dtype=object)
        codes = languages.indices.to_numpy()
        everything = np.ones(len(codes), np.bool_)
        for left, mask in zip((self.languages, *self.languages_left), (everything, *masks), strict=True):
            if len(names) == 1:  # usual, and ten times as fast
                left |= set(names) if mask.any() else set()
            else:
                left |= set(names[np.bincount(codes[mask], minlength=len(names)) > 0])

    @property
    def columns_without_values(self) -> list[str]:
        """Columns in which no text has a value, most likely because their name is wrong."""
        return sorted(self.expression.names - self.have_values) if self.num_texts else []

    def panel(self, title: str) -> TablePanel:
        """Build the table of the conditions, which ends with all of them together."""
        rows: list[list[str | float | int | None]] = []
        for number, condition in enumerate((*self.expression.conditions, TOGETHER)):
            counts: list[int | None] = [int(self.holds[number]), None, None]
            if condition is not TOGETHER:
                counts[1:] = int(self.alone[number]), int(self.missing[number])
            lost = sorted(self.languages - self.languages_left[number])
            rows.append([condition, *counts, ", ".join(lost) or "none"])
            if len(self.entries):
                rows[-1].append(int(np.count_nonzero(self.entries & ~self.entries_left[number])))
        bounds = "".join(f" {name}: {bound:.6g}." for name, bound in self.bounds.items())
        note = (
            f"Of {self.num_texts:,} texts, those for which each condition holds, and those that it alone drops.{bounds}"
        )
        columns = ["condition", "texts it holds for", "dropped by it alone", "value missing", "languages lost"]
        if len(self.entries):
            note += (
                f" The texts have {np.count_nonzero(self.entries):,} entries. One is lost if no text with it is left."
            )
            if self.num_not_matched:
                note += f" {self.num_not_matched:,} of the texts were not matched, and their entries are not counted."
            columns.append("entries lost")
        return TablePanel(title=f"Conditions of {title}", note=note, order=12, columns=columns, rows=rows)
