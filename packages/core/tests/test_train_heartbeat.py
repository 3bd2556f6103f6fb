"""A process that dies or hangs ends the others within a minute, and is named."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from train_toy import in_processes, plan
from vfm.train.parallel.heartbeat import Heartbeat, _pid_namespace


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_other_with_a_message(tmp_path: Path, parallel: str) -> None:
    runtime = {"device": "cpu", "parallel": parallel}
    job = {"folder": "killed", "plan": plan(runtime=runtime).model_dump(mode="json"), "ending": "SIGKILL"}
    errors = in_processes(2, tmp_path, [job], code=1)
    assert (tmp_path / "killed" / "stopped-0.txt").exists(), errors
    message = (tmp_path / "killed" / "stopped-0.txt").read_text()
    assert message.startswith("process 1 of 2 died (pid ")
    assert message.endswith("the next run resumes from the last checkpoint")


@pytest.mark.slow
def test_a_stopped_process_ends_the_other_with_a_message(tmp_path: Path) -> None:
    job = {"folder": "stopped", "plan": plan().model_dump(mode="json"), "ending": "SIGSTOP"}
    errors = in_processes(2, tmp_path, [job], code=1)
    assert "process 0 ends: process 1 of 2 hangs: no sign of life for" in errors


def test_a_process_that_hangs_can_be_killed_by_the_one_that_watches_it() -> None:
    store = HashStore()
    lost: list[str] = []
    with subprocess.Popen(["sleep", "600"]) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        store.set("alive-1", f"0 {_pid_namespace()} here {stopped.pid}")
        beats = [Heartbeat(store, rank, 3, lost.append, silence=0.2, interval=0.05, grace=0.0) for rank in (2, 0)]
        assert all(beat.lost(30).startswith("process 1 of 3 hangs") for beat in beats)
        beats[0].kill_hung()  # watches process 0
        assert stopped.poll() is None
        beats[1].kill_hung()
        assert stopped.wait(30) == -signal.SIGKILL
    for beat in beats:
        beat.end(done=True)


def watch(number: int, lost: list[str], silence: float) -> list[Heartbeat]:
    store = HashStore()
    return [
        Heartbeat(store, rank, number, lost.append, silence=silence, interval=0.05, grace=0.0) for rank in range(number)
    ]


def test_every_process_learns_which_one_is_silent() -> None:
    lost: list[str] = []
    beats = watch(3, lost, silence=4.0)
    beats[1].end(done=False)
    assert all(beats[rank].lost(30).startswith("process 1 of 3 hangs") for rank in (0, 2))
    while len(lost) < 2:
        time.sleep(0.01)
    assert lost[0] == lost[1]


def test_nothing_is_lost_while_all_live_and_when_one_is_done() -> None:
    lost: list[str] = []
    beats = watch(2, lost, silence=60.0)
    assert beats[0].lost(1.0) == ""
    beats[1].end(done=True)
    assert beats[0].lost(1.0) == ""
    beats[0].end(done=True)
    assert lost == []
