"""What a damaged file may lose: samples put in = samples read back + samples counted as bad, and the rest is intact."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from itertools import accumulate, pairwise
from typing import Any

from fuzz.mutations import Damage

Result = dict[str, Any]
OF_ALL = ("classnames.txt", "zeroshot_classification_templates.txt", "nshards.txt")  # of all samples
POINTS = ("flip", "value")  # damage within one record


def lines(data: bytes) -> list[tuple[int, int]]:
    """Return the ranges of the lines of a table."""
    return list(pairwise(accumulate(map(len, data.splitlines(keepends=True)), initial=0)))


def tar_samples(data: bytes) -> list[tuple[int, int]]:
    """Return the ranges of the samples of a tar: consecutive members of one key."""
    keys: dict[str, int] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            keys.setdefault(member.name.partition(".")[0], member.offset)
    return list(pairwise([*keys.values(), len(data)]))


def records(name: str, data: bytes) -> list[tuple[int, int]] | None:
    """Return the ranges of the records in a file; None if any of its bytes may belong to every record."""
    if name.endswith(".tar"):
        return tar_samples(data)
    if name.endswith((".csv", ".tsv", ".jsonl", ".txt")) and name not in OF_ALL:
        return lines(data)
    return [(0, len(data))] if name.endswith((".png", ".jpg", ".webp")) else None


def lost_silently(before: Result, after: Result, damage: Damage, original: bytes, name: str) -> str | None:
    """Return what is wrong with a result that was reported as a success, None if nothing is.

    Args:
        before: of the undamaged data, `items` (a hash of each sample) and `bad` (the number of counted bad ones). Where
            a file lists the samples and their annotations, also `dropped` (the number of counted bad annotations), and
            `records` (read and counted) and `listed` (in the file), by kind.
        after: the same of the damaged data.
        damage: the damage.
        original: the undamaged file.
        name: the file's name.
    """
    good, found = Counter(before["items"]), Counter(after["items"])
    missing, other = (good - found).total(), (found - good).total()
    bad = after["bad"] - before["bad"]
    unlisted = 0
    if after.get("listed"):
        for kind, number in after["listed"].items():
            if after["records"][kind] != number:
                return f"{number} {kind} are listed, {after['records'][kind]} are read or counted"
        # The damage took these out of the list. Their annotations are still listed, so all of them are counted above.
        unlisted = max(0, before["listed"]["images"] - after["listed"]["images"])
    spans = records(name, original)
    touched = len(before["items"]) if spans is None else sum(a <= damage.stop and damage.start <= b for a, b in spans)
    # A flipped bit in a line break touches two lines; inserted bytes may contain line breaks of their own.
    new = 1 + damage.data.count(b"\n") - original.count(b"\n") if damage.kind in ("insert", "duplicate", "swap") else 1
    if other > touched + max(new, 1):
        return f"{other} samples differ where {touched} records are damaged"
    # Where a line is a record and any line is a good one, no reader can see that two have become one.
    joined = original.count(b"\n", damage.start, damage.stop) if name.endswith(".txt") else 0
    allowed = joined if damage.kind in POINTS else max(touched - 1, 0)
    if missing - other - bad > allowed + unlisted:
        return f"{missing - other} of {good.total()} samples are lost, {bad} are counted"
    return None
