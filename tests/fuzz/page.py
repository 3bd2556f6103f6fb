"""The page of outcomes, `docs/faults.md`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fuzz.cases import ALLOWED, FORBIDDEN

HEAD = """\
# Faults

Files are damaged at random and read by the real command: bits are flipped, files cut off, ranges overwritten, removed,
inserted, repeated or exchanged, numbers made huge, texts stored in other encodings, brackets nested a hundred thousand
times, values of JSON and YAML replaced, and whole files replaced by others. Each case runs in a separate process.

```sh
make fuzz
```

Allowed outcomes: *good* (the command succeeded, no sample was lost), *counted* (bad samples were skipped and counted),
*refused* (lines that name the damaged file or its folder, exit code 2). Forbidden ones: *traceback* (or a signal),
*nameless* (a line that names no file), *hang* (over 30 s of the processor, or 5 minutes of waiting), *memory* (over
2 GiB), *silent* (samples were lost or changed unnoticed). The place of the damage determines the possible changes:
samples put in = samples read + samples counted, and records outside the damaged range are read unchanged or counted.
Bytes that no format protects, such as pixels of a JPEG or letters of a caption, may change unnoticed.

"""


def page(records: list[dict[str, Any]], seed: int, before: str = "") -> str:
    """Return the page: outcomes by target and by damage, and the number of all.

    Args:
        records: the outcomes.
        seed: of the cases.
        before: the page so far, whose sections, which other commands have measured, are kept behind these tables.
    """
    _, section, others = before.partition("\n## ")
    counts = Counter(record["outcome"] for record in records)
    seconds = sum(record["seconds"] for record in records)
    forbidden = sum(counts[kind] for kind in FORBIDDEN)
    return (
        HEAD
        + f"{len(records):,} cases, seed {seed}, {seconds:,.0f} s of CPU time: {forbidden} forbidden outcomes.\n\n"
        + _table("target", records)
        + "\n"
        + _table("damage", records)
        + section
        + others
    )


def _table(column: str, records: list[dict[str, Any]]) -> str:
    kinds = (*ALLOWED, *FORBIDDEN)
    rows = {name: Counter() for name in dict.fromkeys(record[column] for record in records)}
    for record in records:
        rows[record[column]][record["outcome"]] += 1
    rows["all"] = sum(rows.values(), Counter())
    lines = [f"| {column} | {' | '.join(kinds)} |", f"|---|{'--:|' * len(kinds)}"]
    lines += [f"| {name} | {' | '.join(str(found[kind]) for kind in kinds)} |" for name, found in rows.items()]
    return "\n".join(lines) + "\n"
