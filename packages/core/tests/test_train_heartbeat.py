"""A process that dies or hangs ends the others within a minute, and is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from train_toy import MainProbe, in_processes, plan
from vfm.train.parallel.heartbeat import Heartbeat, _pid_namespace
from vfm.train.parallel.progress import Phase, Position, Sighting, hanging


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


HANGS = {  # the message, and a function in the stacks of the process that hangs
    "reading": ("process 1 of 2 hangs: it reads the data of step 6 for", "stacks-1.txt", "in steps"),
    "computing": ("all 2 processes hang: each computes step 6 for", "stacks-1.txt", "in sleep_at_step_6"),
    "evaluating": ("process 0 of 2 hangs: it evaluates after step 5 for", "stacks-0.txt", "in sleep"),
    "saving": (" saves the checkpoint of step ", "stacks-0.txt", "in sleep"),  # with fsdp all of them save
}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("hang", HANGS)
def test_a_process_without_progress_ends_all_and_is_named(tmp_path: Path, parallel: str, hang: str) -> None:
    runtime = {"device": "cpu", "parallel": parallel, "hang_seconds": 0.5}
    evaluation = {"tasks": [MainProbe(name="probe")], "every_steps": 5} if hang == "evaluating" else {}
    settings = plan(runtime=runtime, checkpoint={"every_steps": 3}, **evaluation).model_dump(mode="json")
    begun = time.monotonic()
    errors = in_processes(2, tmp_path, [{"folder": "hung", "plan": settings, "hang": hang}], code=1)
    message, stacks, function = HANGS[hang]
    assert message in errors
    assert function in (tmp_path / "hung" / "work" / stacks).read_text()
    for rank in range(2):
        record = json.loads((tmp_path / "hung" / "work" / f"collectives-{rank}.json").read_text())["gloo"]
        assert 0 < len(record["entries"]) <= 50
        assert "gloo:all_reduce" in {entry["profiling_name"] for entry in record["entries"]}
    print(f"{parallel} {hang}: named after {time.monotonic() - begun:.0f} s, with the start of both processes")


def test_the_least_advanced_process_is_named_by_the_limit_of_its_phase() -> None:
    def see(step: int, phase: Phase, seconds: float) -> Sighting:
        return Sighting.parse(str(Sighting(step, phase, seconds)))

    waiting = see(8, Phase.COMPUTING, 90)
    assert hanging([waiting, see(8, Phase.READING, 29)], 30) == ""
    assert hanging([waiting, see(8, Phase.READING, 31)], 30).startswith("process 1 of 2 hangs: it reads the data")
    assert hanging([see(7, Phase.SAVING, 299), waiting], 30) == ""  # a checkpoint may take ten times as long
    assert hanging([see(7, Phase.SAVING, 301), waiting], 30).startswith("process 0 of 2 hangs: it saves the checkpoint")
    assert hanging([waiting, see(8, Phase.COMPUTING, 2)], 30) == ""  # one of them still makes progress
    assert hanging([waiting, waiting], 30) == "all 2 processes hang: each computes step 8 for 90 s"
    two = hanging([see(9, Phase.READING, 40), waiting, waiting], 30)
    assert two == "processes 1, 2 of 3 hang: each computes step 8 for 90 s"


def test_a_process_that_hangs_can_be_killed_by_the_one_that_watches_it() -> None:
    store = HashStore()
    lost: list[str] = []
    with subprocess.Popen(["sleep", "600"]) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        store.set("alive-1", f"0 {_pid_namespace()} here {stopped.pid}")
        beats = [beating(store, rank, 3, lost, silence=0.2) for rank in (2, 0)]
        assert all(beat.lost(30).startswith("process 1 of 3 hangs") for beat in beats)
        beats[0].kill_hung()  # watches process 0
        assert stopped.poll() is None
        beats[1].kill_hung()
        assert stopped.wait(30) == -signal.SIGKILL
    for beat in beats:
        beat.end(done=True)


def watch(number: int, lost: list[str], silence: float) -> list[Heartbeat]:
    store = HashStore()
    return [beating(store, rank, number, lost, silence=silence) for rank in range(number)]


def beating(store: HashStore, rank: int, number: int, lost: list[str], *, silence: float) -> Heartbeat:
    return Heartbeat(
        store, rank, number, lost.append,
        silence=silence, position=Position(), patience=60.0, interval=0.05, grace=0.0, stacks=Path(os.devnull),
    )  # fmt: skip


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
