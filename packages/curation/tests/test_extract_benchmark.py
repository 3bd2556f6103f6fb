"""The benchmark of merging links runs and writes its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks/extract.py"


def test_benchmark_writes_rates(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--quick", "--out", tmp_path]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "extract.json").read_text())["results"]
    assert [(one["files"], one["buckets"]) for one in results] == [(2, 4), (4, 8)]
    assert all(value > 0 for one in results for value in one.values())
    assert (tmp_path / "extract.md").read_text().count("\n|") == 3
