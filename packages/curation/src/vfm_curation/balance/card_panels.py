"""Draw the panels of the data card, from the funnel to examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, product

import numpy as np
import pyarrow as pa

from vfm.plugin import BarsPanel, LinesPanel, Panel, Series, TablePanel
from vfm_curation.balance.data_card import DataCard
from vfm_curation.balance.subset import BalancedShard
from vfm_curation.counts.count_panels import NUM_POINTS, NUM_SHOWN, ranked
from vfm_curation.counts.probabilities import Floats, Integers, cumulative_share, tail_share
from vfm_curation.metadata.function_words import function_words
from vfm_curation.pool_texts import shortened

MAX_THRESHOLDS = 5  # lines that mark t
NUM_DECILES = 10
EXAMPLES_A_DECILE = 2  # one that was kept and one that was dropped
Row = list[str | float | int | None]


def panels(card: DataCard) -> list[Panel]:
    """Build all panels except the examples. Those need the texts."""
    built = [_funnel(card), _seconds(card), _counts(card), _head_and_tail(card), _choices(card), _languages(card)]
    built.append(_top(card))
    if _lost_ids(card).size:
        built.append(_lost(card))
    return built


def _funnel(card: DataCard) -> Panel:
    labels = [step.name for step in card.funnel]
    values = [float(step.texts) for step in card.funnel]
    note = f"{values[-1] / values[0]:.1%} of all texts are kept, {values[-1] / values[1]:.1%} of the matched ones."
    return BarsPanel(title="Curation funnel", note=note, order=10, labels=labels, values=values, x_label="texts")


def _seconds(card: DataCard) -> Panel:
    """Build the table of the funnel with times. It is a separate panel because its file differs between equal runs."""
    rows: list[Row] = [[step.name, step.texts, step.seconds and round(step.seconds, 2)] for step in card.funnel]
    note = f"Texts after each step. The kept ones belong to {card.totals.num_samples:,} images."
    columns = ["step", "texts", "seconds"]
    return TablePanel(title="Curation seconds", note=note, order=11, columns=columns, rows=rows)


def _counts(card: DataCard) -> Panel:
    series = [ranked("before balancing", card.matched), ranked("after balancing", card.kept)]
    for name, t in islice(card.thresholds.items(), MAX_THRESHOLDS):
        number = max(1, int(np.count_nonzero(card.languages.of(card.matched, name))))
        series.append(Series(name=f"t{f' of {name}' if name else ''}", x=[1.0, float(number)], y=[t, t]))
    return LinesPanel(
        title="Counts by rank", order=19, series=series, x_label="rank of the entry", y_label="texts with the entry",
        x_log=True, y_log=True,
        note="Texts with each entry, most frequent entries first. About t texts of an entry above t are drawn for it;"
        " it keeps more, since texts are also kept for their rarer entries. Below t all are kept.",
    )  # fmt: skip


def _head_and_tail(card: DataCard) -> Panel:
    t = card.languages.t_of_entries(card.thresholds)
    note = (
        f"Fraction of all matches in the most frequent entries. The tail, entries with fewer than t texts, has"
        f" {tail_share(card.matched, t):.1%} before and {_share_of(card.kept, card.matched < t):.1%} after."
        f" {(card.matched == 0).sum():,} of {len(t):,} entries match nothing. Texts are dropped at random; the curves"
        " of other t are expectations."
    )
    series = [_curve("before balancing", card.matched), _curve("after balancing", card.kept)]
    other_choices = [choice for choice in card.choices if choice.factor != 1]
    series += [_curve(_times(choice.factor), choice.expected.counts) for choice in other_choices]
    return LinesPanel(
        title="Head and tail", note=note, order=20, series=series,
        x_label="entries, most frequent first", y_label="cumulative fraction of matches", x_log=True,
    )  # fmt: skip


def _curve(name: str, counts: Integers | Floats) -> Series:
    share = cumulative_share(counts)
    ranks = np.unique(np.geomspace(1, len(counts), NUM_POINTS).round().astype(np.int64))
    return Series(name=name, x=ranks.astype(float).tolist(), y=share[ranks - 1].round(6).tolist())


def _times(factor: float) -> str:
    if factor == 1:
        return "t"
    if factor > 1:
        return f"t × {factor:g}"
    return f"t / {1 / factor:g}"


def _choices(card: DataCard) -> Panel:
    rows: list[Row] = []
    for choice in card.choices:
        counts = choice.expected.counts
        size = round(choice.expected.size)
        t_of_languages = [f"{_language(name)}{t * choice.factor:.5g}" for name, t in card.thresholds.items()]
        top = round(float(counts.max() / max(1.0, counts.sum())), 4)
        label = _times(choice.factor)
        tail_fraction = round(choice.tail_share, 4)
        rows.append([label, ", ".join(t_of_languages), tail_fraction, choice.num_head, size, top])
    return TablePanel(
        title="Other choices of t", order=21,
        note="Expected numbers for larger and smaller t; the numbers of an actual draw vary around them.",
        columns=["", "t", "tail fraction of matches", "head entries", "expected texts", "fraction of the top entry"],
        rows=rows,
    )  # fmt: skip


def _language(name: str) -> str:
    return f"{name} " if name else ""


def _languages(card: DataCard) -> Panel:
    """Build the table of entries, thresholds and matches by language of the entries, and texts by their language."""
    rows: list[Row] = []
    for language in dict.fromkeys([*card.languages.names, *sorted(card.texts_of)]):
        row: Row = [language or "any"]
        if language in card.languages.names:
            counts = card.languages.of(card.matched, language)
            t = card.thresholds[language]
            head = int((counts > t).sum())
            row += [len(counts), float(f"{t:.6g}"), head, round(tail_share(counts, t), 4)]
        else:
            row += [None] * 4
        texts = card.texts_of.get(language)
        if texts:
            kept = card.totals.kept[language]
            row += [texts, card.totals.matched[language], kept, round(kept / texts, 4)]
        rows.append(row)
    return TablePanel(
        title="Languages", order=22,
        note="Tail share: the fraction of a language's matches in entries with fewer than its t texts.",
        columns=["language", "entries", "t", "head entries", "tail share", "texts", "matched", "kept", "share kept"],
        rows=rows,
    )  # fmt: skip


def _top(card: DataCard) -> Panel:
    rows: list[Row] = []
    for i in islice(_with_content(card), NUM_SHOWN):
        probability = round(float(card.probability[i]), 4)
        rows.append([card.entry(i), int(card.matched[i]), int(card.kept[i]), probability])
    note = (
        "Texts with each entry before and after, without entries that contain a function word. t is not a cap: a text"
        " may be kept for one of its rarer entries."
    )
    columns = ["entry", "before", "after", "own probability"]
    return TablePanel(title="Most frequent entries", note=note, order=30, columns=columns, rows=rows)


def _with_content(card: DataCard) -> Iterator[int]:
    """Yield the entries without a function word of their language or, if they are for any, of the texts' languages."""
    for number in np.argsort(-card.matched, kind="stable").tolist():
        language = card.entries["language"][number].as_py()
        entry = card.entries["entry"][number].as_py()
        words = function_words(*([language] if language else card.texts_of))
        if words.isdisjoint(entry.lower().split(" ")):
            yield number


def _lost_ids(card: DataCard) -> Integers:
    return np.flatnonzero((card.matched > 0) & (card.kept == 0))


def _lost(card: DataCard) -> Panel:
    lost = _lost_ids(card)
    by_count = lost[np.argsort(-card.matched[lost], kind="stable")]
    rows: list[Row] = [[card.entry(i), int(card.matched[i])] for i in by_count[:NUM_SHOWN].tolist()]
    note = f"{len(lost):,} entries matched but kept no text; those with most texts first. A larger t keeps them."
    return TablePanel(title="Lost entries", note=note, order=31, columns=["entry", "before"], rows=rows)


def _share_of(counts: Integers, chosen: np.ndarray) -> float:
    return float(counts[chosen].sum() / max(1, counts.sum()))


def deciles(matched: Integers) -> Integers:
    """Compute the tenth of all matches that each entry falls into.

    Entries are sorted by frequency. The head is tenth 0 and the tail 9.
    """
    order = np.argsort(-matched, kind="stable")
    before = np.cumsum(matched[order]) - matched[order]
    tenths = np.empty(len(matched), dtype=np.int64)
    tenths[order] = np.minimum(NUM_DECILES - 1, NUM_DECILES * before // max(1, int(matched.sum())))
    return tenths


def rarest_tenths(decile: Integers, shard: BalancedShard) -> Integers:
    """Compute the tenth of the rarest entry of each text, (num_texts,), by the `deciles` of the entries."""
    # The rarest entry of a text has the highest tenth.
    tenths: Integers = np.maximum.reduceat(decile[shard.matches.ids], shard.matches.offsets[:-1])
    return tenths


def examples(card: DataCard, shards: Iterable[tuple[BalancedShard, pa.Table]]) -> Panel:
    """Build the panel with kept and dropped texts of each decile, from head to tail, by the rarest of their entries.

    Args:
        card: The counts.
        shards: Balanced shards, each with all its texts. They are read until every decile has its examples.
    """
    decile = deciles(card.matched)
    rows = [list[Row]() for _ in range(NUM_DECILES + 1)]
    for shard, texts in shards:
        _add_examples(card, decile, rows, shard, texts)
        if all(len(rows_of_tenth) >= EXAMPLES_A_DECILE for rows_of_tenth in rows):
            break
    return TablePanel(
        title="Examples", order=40,
        note="By a text's rarest entry. Tenth 1: the most frequent entries, with a tenth of matches; 10: the rarest.",
        columns=["tenth", "text", "outcome", "probability", "rarest entry", "its texts"],
        rows=list(chain.from_iterable(rows)),
    )  # fmt: skip


def _add_examples(
    card: DataCard, decile: Integers, rows: Sequence[list[Row]], shard: BalancedShard, texts: pa.Table
) -> None:
    tenths = rarest_tenths(decile, shard)
    for tenth, outcome in product(range(NUM_DECILES), ("kept", "dropped")):
        candidates = np.flatnonzero((tenths == tenth) & (shard.kept == (outcome == "kept")))
        if len(candidates) and outcome not in {row[2] for row in rows[tenth]}:
            text = int(candidates[0])
            rarest = min(shard.matches.ids_of(text), key=lambda entry: card.matched[entry])
            chance = round(float(shard.probability[text]), 4)
            caption = caption_of(texts, *identities(shard.matches.table.slice(text, 1)))
            rows[tenth].append([tenth + 1, caption, outcome, chance, card.entry(rarest), int(card.matched[rarest])])
    num_missing = EXAMPLES_A_DECILE - len(rows[-1])
    if num_missing:
        matched = set(identities(shard.matches.table))
        unmatched = (identity for identity in identities(texts) if identity not in matched)
        for identity in islice(unmatched, num_missing):
            rows[-1].append([None, caption_of(texts, identity), "no entry", 0.0, None, None])


def identities(table: pa.Table) -> list[tuple[int, str, int]]:
    """List the (row, language, text_index) of each text."""
    rows = table["row"]
    languages = table["language"]
    indices = table["text_index"]
    return list(zip(rows.to_pylist(), languages.to_pylist(), indices.to_pylist(), strict=True))


def caption_of(texts: pa.Table, identity: tuple[int, str, int]) -> str:
    """Look up a text of a shard and shorten it. The texts must be sorted by row."""
    first, stop = np.searchsorted(texts["row"].to_numpy(), [identity[0], identity[0] + 1]).tolist()
    its_image = texts.slice(first, stop - first)
    return shortened(its_image["text"][identities(its_image).index(identity)].as_py())
