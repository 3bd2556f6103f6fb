"""The results of a run as files: CLIP_benchmark's JSON, one a model, set and task, and one CSV of all.

Source: the records and the table are those of `clip_benchmark eval` and `clip_benchmark build`, with more keys.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vfm.flow.results import reports
from vfm.flow.run import LINKS, read_manifest

CSV_FILE = "results.csv"


def collect(directory: Path) -> dict[str, dict[str, Any]]:
    """All result records of a finished run by the name of their file, each with the seconds that its stage took."""
    found: dict[str, dict[str, Any]] = {}
    for stage in reports(directory):
        folder = directory / LINKS / stage
        seconds = read_manifest(folder).get("seconds")
        for file in sorted((folder / "results").glob("*.json")):
            record = json.loads(file.read_text(encoding="utf-8"))
            found[f"{stage}_{record['name']}.json"] = {**record, "stage": stage, "seconds": seconds}
    return found


def write_results(directory: Path, out: Path) -> int:
    """Writes the records of a run and their table into a folder.

    Returns:
        How many records there are.
    """
    records = collect(directory)
    out.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        (out / name).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_csv(list(records.values()), out / CSV_FILE)
    return len(records)


def write_csv(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """One row a record, the columns in sorted order; metrics are columns of their own, with the ends of intervals."""
    rows = [_row(record) for record in records]
    columns = sorted({column for row in rows for column in row})
    part = file.with_name(f".{file.name}.part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(file)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    row |= record["metrics"]
    for metric, (low, high) in record["ci95"].items():
        row |= {f"{metric}_low": low, f"{metric}_high": high}
    return row
