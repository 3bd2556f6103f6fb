"""Measure what `auto` chooses from, and write its table: `python packages/kernels/benchmarks/fill_table.py`.

The sizes of `shapes.GRID` are measured into a folder for this card and these versions of torch and triton, so that
others are measured again. A repeated command resumes. Then the rows of this card and these versions in
`tuning/measured.json` are replaced. `--results` only reads a folder that `run.py` has filled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"
sys.path.insert(0, str(SOURCES))

import torch  # noqa: E402
from records import Row, Table, replace  # noqa: E402

from vfm_kernels.dispatch.choosing import OURS, Measurement, winner  # noqa: E402
from vfm_kernels.dispatch.measured import versions  # noqa: E402

TABLE = SOURCES / "vfm_kernels/tuning/measured.json"


def main() -> None:
    """Parse the command line, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="folder with kernels.csv and about.json; default: measure")
    parser.add_argument("--table", type=Path, default=default_table(), help="default: $OUT/measured.json or tuning/")
    parser.add_argument("--seconds", type=float, default=420, help="stop measuring after so long, with exit code 75")
    options = parser.parse_args()
    status = 0
    if options.results is None:
        if not torch.cuda.is_available():
            parser.error("expected a CUDA device, found none; --results reads measured rows")
        options.results = folder_of(torch.cuda.get_device_name(), versions())
        command = [sys.executable, str(HERE / "run.py"), "--grid", "--out", str(options.results)]
        path = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        status = subprocess.run([*command, "--seconds", str(options.seconds)], env=environment).returncode
    about = json.loads((options.results / "about.json").read_text())
    new = measurements(Table(options.results / "kernels.csv", Row).rows, about)
    if not new:
        parser.error(f"{options.results}: expected rows measured on a GPU, found none")
    mine = (new[0].card, new[0].versions)
    before = options.table if options.table.exists() else TABLE
    old = [row for row in json.loads(before.read_text()) if (row["card"], row["versions"]) != mine]
    lines = ",\n".join(json.dumps(row) for row in [*old, *map(asdict, new)])
    replace(options.table, f"[\n{lines}\n]\n")
    won = sum(winner(row.times).name in OURS for row in new)
    print(f"{len(new)} rows of {new[0].card} with {new[0].versions}; ours win in {won}")
    sys.exit(status)


def default_table() -> Path:
    """Return the table that is written: in `$OUT` if it is set, so that a borrowed machine gives it back."""
    return Path(os.environ["OUT"]) / TABLE.name if "OUT" in os.environ else TABLE


def folder_of(card: str, installed: str) -> Path:
    """Return the folder of the measurements of a card with some versions."""
    name = re.sub(r"[^a-z0-9.]+", "-", f"{card} {installed}".lower())
    return Path(os.environ.get("OUT") or HERE / "results") / name


def measurements(rows: list[Row], about: dict[str, str]) -> list[Measurement]:
    """Return one measurement for each op, size and direction in which several implementations were timed."""
    if "sm_" not in about["card"]:
        return []
    times: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row.milliseconds is not None and row.low is not None and row.high is not None:
            each = times.setdefault((row.op, row.size, row.direction), {})
            each[row.implementation] = [round(value, 5) for value in (row.milliseconds, row.low, row.high)]
    card, installed = about["card"].partition(", sm_")[0], about["installed"]
    found = []
    for (op, size, direction), named in times.items():
        num_rows, length, width, dtype, kind = json.loads(size)
        if any(name in OURS for name in named) and any(name not in OURS for name in named):
            found.append(Measurement(op, direction, num_rows, length, width, dtype, card, installed, named, kind))
    return found


if __name__ == "__main__":
    main()
