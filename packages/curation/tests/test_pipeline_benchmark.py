"""The benchmark of the whole pipeline runs and writes its results."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/pipeline.py"


def test_benchmark_writes_rates_and_memory(tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"word{i % 600} beside word{i % 599} in word{i % 7}" for i in range(1500)))
    command = [sys.executable, SCRIPT, "--captions", captions, "--quick", "--out", tmp_path / "results"]
    command += ["--work", tmp_path / "work", "--distinct", "3000"]
    (tmp_path / "work/measuring-killed").mkdir(parents=True)
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "work").glob("measuring-*"))
    shards = [tmp_path / f"work/pool4000/0000000{shard}.parquet" for shard in range(4)]
    assert [shard.stat().st_ino == shards[0].stat().st_ino for shard in shards] == [True, False, False, True]
    results = json.loads((tmp_path / "results/pipeline.json").read_text())["results"]
    assert [(one["processes"], len(one["runs"])) for one in results] == [(1, 2), (2, 2), (1, 2), (2, 2)]
    for one in (run for result in results for run in result["runs"]):
        assert one["captions"] >= one["matched"] >= one["kept_images"] > 0
        assert min(one["match_cpu"], one["balance_cpu"], one["both_wall"]) > 0
        assert 0 < one["system_cpu"] < one["both_cpu"]
        assert min(one["match_bytes"], one["balance_bytes"], one["kept_bytes"]) > 10_000
        assert 20 < one["peak_mib"] < 2000
    assert len({run["kept_images"] for result in results[2:] for run in result["runs"]}) == 1
    assert (tmp_path / "results/pipeline.md").read_text().count("\n|") == 3
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "results/pipeline.json").read_text())["results"] == results  # no run is repeated


def test_the_peak_is_not_that_of_the_process_that_started_the_run() -> None:
    child = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import pipeline; print(pipeline.peak_mib())"
    parent = f"import subprocess, sys; large = b'1' * (1 << 30); subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert 20 < float(done.stdout) < 1000, done.stderr


def test_a_rate_has_all_runs_or_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    measured = importlib.import_module("pipeline").Measured
    small = [{"captions": 100, "both_cpu": seconds} for seconds in (1.0, 2.0, 3.0)]
    longer, short = ({"captions": 500, "both_cpu": seconds} for seconds in (4.0, 1.5))
    assert measured(1, [longer, longer], small, small).rates("both_cpu") == [200, 200]
    assert measured(1, [longer, short], small, small).rates("both_cpu") == []


def test_the_large_run_writes_time_memory_and_disk_and_removes_what_it_made(tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"word{i % 600} beside word{i % 599} in word{i % 7}" for i in range(1500)))
    (tmp_path / "work").mkdir()
    options = ["--texts", "5000", "--entries", "2000", "--shard-size", "1000", "--work", tmp_path / "work"]
    command = [sys.executable, SCRIPT.with_name("recombined.py"), "--captions", captions, *options, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "recombined.json").read_text())
    assert found["texts"] == 5000 >= found["matched"] >= found["kept"] > 0
    assert all(step["seconds"] > 0 and step["peak_mib"] > 20 for step in found["steps"])
    assert all(step["files"] > 0 and step["megabytes"] > 0 for step in found["steps"])
    assert (tmp_path / "recombined.md").read_text().count("\n|") == 6
    assert list((tmp_path / "work").iterdir()) == []
