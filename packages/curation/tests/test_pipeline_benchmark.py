"""The benchmark of the whole pipeline runs and writes its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks/pipeline.py"


def test_benchmark_writes_rates_and_memory(tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"word{i % 600} beside word{i % 599} in word{i % 7}" for i in range(1500)))
    command = [sys.executable, SCRIPT, "--captions", captions, "--quick", "--out", tmp_path / "results"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results/pipeline.json").read_text())["results"]
    assert [one["captions"] for one in results] == [2000, 4000]
    for one in results:
        assert one["captions"] >= one["matched"] >= one["kept_images"] > 0
        assert min(one["both_captions_per_second"], one["match_captions_per_second"]) > 0
        assert 20 < one["peak_mib"] < 2000
    assert (tmp_path / "results/pipeline.md").read_text().count("\n|") == 3
