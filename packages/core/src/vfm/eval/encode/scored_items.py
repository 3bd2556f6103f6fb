"""The items behind the accuracies of a report, one row per item, so that other runs can be compared with it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.interfaces import Score
from vfm.statistics import Accuracy
from vfm.storage.store_files import reading

ITEMS_FILE = "scored_items.parquet"
Key = tuple[str, str]  # name of the model, name of the metric


def write_items(directory: Path, scores: Iterable[tuple[str, Score]]) -> None:
    """Write the items of all accuracies among (model, score) pairs. Without any accuracy, write no file."""
    parts = [_items_table(model, score) for model, score in scores if isinstance(score, Accuracy)]
    if parts:
        pq.write_table(pa.concat_tables(parts), directory / ITEMS_FILE, compression="zstd", write_page_checksum=True)


def read_items(directory: Path) -> dict[Key, Accuracy]:
    """Read the accuracies whose items a report has, by model and metric.

    Raises:
        UserError: If the file is damaged.
    """
    file = directory / ITEMS_FILE
    if not file.is_file():
        return {}
    with reading(file, "scored items"):
        table = pq.read_table(file, page_checksum_verification=True)
        names = list(zip(table["model"].to_pylist(), table["metric"].to_pylist(), strict=True))
        accuracies = {}
        start = 0
        for key, rows in groupby(names):
            count = len(list(rows))
            accuracies[key] = _accuracy(key[1], table.slice(start, count))
            start += count
        return accuracies


def _items_table(model: str, score: Accuracy) -> pa.Table:
    count = len(score.correct)
    columns = {
        "model": pa.repeat(model, count).dictionary_encode(),
        "metric": pa.repeat(score.metric, count).dictionary_encode(),
        "correct": pa.array(score.correct),
    }
    for name, values in (("group", score.groups), ("class", score.classes)):
        columns[name] = pa.nulls(count, pa.int64()) if values is None else pa.array(values, pa.int64())
    return pa.table(columns)


def _accuracy(metric: str, rows: pa.Table) -> Accuracy:
    groups = None if rows["group"].null_count else rows["group"].to_numpy()
    classes = None if rows["class"].null_count else rows["class"].to_numpy()
    return Accuracy(metric, rows["correct"].to_numpy(), groups, classes)
