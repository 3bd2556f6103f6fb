"""A step in several processes: the failure that a user sees is the first, since the others follow from it."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from toy_plugin import Draw
from vfm.base import UserError
from vfm.flow.execution.subprocesses import Processes, run_subprocess, start_subprocess
from vfm.flow.plan.plan import Step
from vfm.flow.plan.store import Slot

FAILS_TWICE = """
import json
for message in ("ckpt/model: no space left on the disk", "process 0 of 2 died"):
    print(json.dumps({"t": 0.0, "type": "run_failed", "stage": "toy", "message": message}), flush=True)
raise SystemExit(1)
"""


def test_the_first_failure_of_several_processes_is_shown(tmp_path: Path) -> None:
    step = Step(Draw(name="toy"), "0" * 64, {}, {}, {}, Slot(tmp_path, "toy-00000000"))
    step.slot.work.mkdir(parents=True)
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        command = [sys.executable, "-c", FAILS_TWICE]
        with pytest.raises(UserError, match=r"^ckpt/model: no space left on the disk$"):
            run_subprocess(
                partial(start_subprocess, command, os.environ), step, lambda event: None, descriptor, Processes()
            )
    finally:
        os.close(descriptor)
