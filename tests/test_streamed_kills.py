"""A training on tars that a failing server sends ends with the same bytes after SIGKILL."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "packages/clip/benchmarks"))

from kills import CASES, Training, contents, data_sets, interrupt, wait


@pytest.mark.slow
@pytest.mark.parametrize("case", ["1 process, streamed", "2 processes, streamed"])
def test_a_killed_training_on_a_stream_resumes_to_the_same_bytes(case: str, tmp_path: Path) -> None:
    runtime, kind = CASES[case]
    with data_sets(tmp_path) as data:
        unbroken, killed = (Training(tmp_path / name, data[kind], runtime) for name in ("unbroken", "killed"))
        assert not any(wait(unbroken.start()))
        assert interrupt(killed, random.Random(0), 0.0, only_last=False)
        assert killed.has_checkpoint()
        assert not any(wait(killed.start()))
        assert contents(killed) == contents(unbroken)
