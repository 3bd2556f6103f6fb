"""The benchmark runs as its README says, and compares steps with equal losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_compared_steps_have_equal_losses(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--quick", "--out", str(tmp_path / "found")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found.md").read_text(encoding="utf-8") == done.stdout
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert all(row["loss difference"] < 1e-5 for row in found["timed"].values())
    plain, first, later = found["counted"].values()
    assert plain > first > later
    assert found["memory"]["a step"] > found["memory"]["models, no step"]


def test_the_stored_result_has_the_counts_of_the_papers_sizes() -> None:
    assert (BENCHMARKS / "results" / "speed.md").is_file()
    found = json.loads((BENCHMARKS / "results" / "speed.json").read_text(encoding="utf-8"))
    plain, first, later = found["counted"].values()
    assert (plain / first, plain / later) == pytest.approx((1.10, 1.42), abs=0.005)
    assert max(row["loss difference"] for row in found["timed"].values()) < 1e-5
