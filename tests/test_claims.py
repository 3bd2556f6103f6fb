"""The claims in miniature run as they stand, at two steps a training; docs/results.md has what they showed in full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import small
from outside import checked

TRAININGS = {
    "metaclip_claim": ["raw", "matched", "balanced"],
    "eva_claim": [
        "teacher", "eva", "from_eva", "from_scratch", "from_scratch_longer", "from_scratch_hot", "from_eva_hot",
    ],
}  # fmt: skip
DATA = ["seeds=[0, 1]", "pool.num_samples=300", "pool.samples_per_shard=100", "val.num_samples=72"]
SCORES = {"metaclip_claim": "acc1/tail", "eva_claim": "samples_to_reach"}


@pytest.mark.parametrize("recipe", TRAININGS)
def test_claim_runs_at_two_steps_and_ends_in_a_table_over_seeds(recipe: str, tmp_path: Path) -> None:
    short = [f"{name}.{key}" for name in TRAININGS[recipe] for key in ("steps=2", "warmup_steps=0")]
    command = [sys.executable, "-m", "vfm", "run", recipe, "--store", str(tmp_path), *small.words([*DATA, *short])]
    done = checked(subprocess.run(command, capture_output=True, text=True))
    assert "over seeds" in done.stdout
    assert SCORES[recipe] in done.stdout
    assert (tmp_path / "runs" / recipe / "report.html").is_file()
