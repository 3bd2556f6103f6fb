"""Write a JSON file in the format of CLIP_benchmark for each model, dataset and task, and one CSV.

The records and the table equal the output of `clip_benchmark eval` and `clip_benchmark build`, with more keys.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vfm.base import redacted
from vfm.flow.plan.store import LINKS
from vfm.flow.records.manifest import read_manifest
from vfm.report.results import reports
from vfm.storage.publishing import write_file
from vfm.storage.store_files import read_record

CSV_FILE = "results.csv"


def collect(directory: Path) -> dict[str, dict[str, Any]]:
    """Collect the result records of a finished run by file name, each with its stage and duration in seconds.

    The records have no credentials, like all other records of a run.
    """
    records: dict[str, dict[str, Any]] = {}
    for stage in reports(directory):
        folder = directory / LINKS / stage
        seconds = read_manifest(folder).get("seconds")
        for file in sorted((folder / "results").glob("*.json")):
            record = read_record(file, "name")
            records[f"{stage}_{record['name']}.json"] = {**record, "stage": stage, "seconds": seconds}
    return redacted(records)


def write_results(directory: Path, out: Path) -> int:
    """Write the records of a run and their table into a folder.

    Returns:
        Number of records.
    """
    records = collect(directory)
    out.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        (out / name).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_csv(list(records.values()), out / CSV_FILE)
    return len(records)


def write_csv(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write one row per record, with sorted columns. Each metric has a column, and two for the ends of its interval."""
    rows = list(map(_row, records))
    columns = sorted(set().union(*rows))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_file(file, stream.getvalue().encode(), durable=False)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    row |= record["metrics"]
    for metric, (low, high) in record["ci95"].items():
        row |= {f"{metric}_low": low, f"{metric}_high": high}
    return row
