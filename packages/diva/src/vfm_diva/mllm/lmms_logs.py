"""Per-sample logs of lmms-eval (0.7).

A log is `<model>/<date>_samples_<task>.jsonl`, one line per item with `doc_id`, `doc_hash`, `target`, `filtered_resps`
(the reply) and one mapping per metric of the task.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.plugin import UserError


@dataclass(frozen=True)
class Item:
    """Item of a log, with its identity, the model's reply, and the line of the log."""

    doc_id: int
    doc_hash: str
    reply: str
    row: Mapping[str, Any]


def find_log(folder: Path, task: str, name: str) -> Path:
    """Find the newest log of a task.

    Args:
        folder: Folder to search, with its subfolders.
        task: Name of the task.
        name: Name of the model, for messages.

    Raises:
        UserError: If there is none.
    """
    log = newest_log(folder, task)
    if log:
        return log
    raise UserError(f"{name}: {folder} has no *_samples_{task}.jsonl; run lmms-eval with --log_samples")


def newest_log(folder: Path, task: str) -> Path | None:
    """Find the newest log of a task below a folder, if there is one."""
    return max(folder.rglob(f"*_samples_{task}.jsonl"), key=lambda file: file.name, default=None)


def read_log(file: Path) -> list[Item]:
    """Read the items of a log in the order of `doc_id`.

    Raises:
        UserError: If a line is damaged, an item appears twice, or there is none.
    """
    items = []
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")  # a reply may have other separators, such as U+2028
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        try:
            row = json.loads(line.decode())
            items.append(Item(int(row["doc_id"]), str(row["doc_hash"]), _reply(row["filtered_resps"]), row))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}: line {number}: expected an item with doc_id, doc_hash, filtered_resps") from None
    counts = Counter(item.doc_id for item in items)
    repeated = [doc for doc, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"{file}: item {repeated[0]} appears twice; two runs wrote into one file")
    if not items:
        raise UserError(f"{file}: the log has no items")
    return sorted(items, key=lambda item: item.doc_id)


def check_same_items(first: Sequence[Item], second: Sequence[Item], names: tuple[str, str], task: str) -> None:
    """Check that two models have answered the same items.

    Args:
        first: Answers of the first model.
        second: Answers of the second model.
        names: Names of the models, for messages.
        task: Name of the task, for messages.

    Raises:
        UserError: If they have not. The message names the first difference.
    """
    first_hashes = {item.doc_id: item.doc_hash for item in first}
    second_hashes = {item.doc_id: item.doc_hash for item in second}
    missing = sorted(first_hashes.keys() ^ second_hashes.keys())
    if missing:
        name = names[0] if missing[0] in first_hashes else names[1]
        raise UserError(
            f"{task}: only {name} has item {missing[0]} ({len(first_hashes)} and {len(second_hashes)} items)"
        )
    for doc, doc_hash in first_hashes.items():
        if doc_hash != second_hashes[doc]:
            raise UserError(f"{task}: item {doc} is another one for {names[0]} than for {names[1]} (doc_hash differs)")


def _reply(filtered: Any) -> str:
    while isinstance(filtered, list):
        filtered = filtered[0]
    if not isinstance(filtered, str):
        raise TypeError("expected a text")
    return filtered
