"""The script that does everything from Python: it is short, is the one of the documents, and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outside import ROOT, checked

SCRIPT = ROOT / "examples/from_python.py"


def test_it_has_at_most_forty_lines_and_is_the_documented_one() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert f"```python\n{text}```" in (ROOT / "docs/python.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_curates_trains_embeds_predicts_and_evaluates_and_caches_the_second_time(tmp_path: Path) -> None:
    small = tmp_path / "small.py"
    text = SCRIPT.read_text(encoding="utf-8")
    for whole, few in {
        '"steps": 60': '"steps": 4',
        '"num_samples": 600': '"num_samples": 64',
        "steps=100": "steps=30",
    }.items():
        assert whole in text
        text = text.replace(whole, few)
    small.write_text(text.replace('"clip.schedule.warmup_steps": 10', '"clip.schedule.warmup_steps": 1'))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, small]
    first, second = (
        checked(subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)) for _ in range(2)
    )
    for expected in ("144 embeddings of width 64", "a red square", "of 100 matched texts kept", "trained 30 steps"):
        assert expected in first.stdout
    assert "resumes after step 30 of 30" in second.stderr
    assert second.stderr.count("✓") == second.stderr.count("cached") > 8


def test_a_script_needs_no_main_guard_for_workers(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import vfm\n"
        "print('once')\n"
        "pool = {'kind': 'shapes.pool', 'name': 'pool', 'num_samples': 40}\n"
        "clip = {'kind': 'clip.train', 'name': 'clip', 'model': 'ViT-Pico-8-32', 'data': 'pool', 'steps': 2,\n"
        "        'global_batch_size': 8, 'schedule': {'warmup_steps': 0}, 'runtime': {'workers': 1, 'threads': 1}}\n"
        "vfm.run({'stages': [pool, clip]}, progress=False)\n"
        "print(__file__.rpartition('/')[2])\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.stdout == "once\nscript.py\n", done.stderr
