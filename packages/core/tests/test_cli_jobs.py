"""`vfm run --jobs 2`: the same artifacts, one event each, readable lines, failures and signals with several stages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vfm
from cli_world import install, run_here, toys
from vfm.storage.locks import is_locked

__all__ = ["toys"]
HERE = Path(__file__).parent
SUMS = """\
stages:
  - {kind: toy.draw, name: a, count: 24}
  - {kind: toy.draw, name: b, seed: 5, count: 24}
  - {kind: toy.add, name: first, inputs: [a], pause: 0.25}
  - {kind: toy.add, name: second, inputs: [b], pause: 0.25}
  - {kind: toy.add, name: both, inputs: [first, second]}
"""
KEEPER = """
import vfm
@vfm.hookimpl
def vfm_event(event):
    if event.stage:
        with open("kept.txt", "a") as file:
            print(event.type, event.stage, file=file)
"""


@pytest.fixture
def site(toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `toys`, with a plugin that keeps events, for processes of their own."""
    (toys / "site").mkdir(exist_ok=True)
    install(toys / "site", "toys", "toy_plugin")
    shutil.copy(HERE / "toy_plugin.py", toys / "site")
    monkeypatch.setenv("PYTHONPATH", str(toys / "site"))
    return toys


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vfm", "run", "r.yaml", "--jobs", "2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C, and hands that down: this process must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(*words: str) -> subprocess.CompletedProcess[str]:
    process = start(*words)
    out, err = process.communicate(timeout=1800)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def events(run: str = "r") -> list[dict[str, Any]]:
    file = Path(f"store/runs/{run}/events.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.02)


def has_begun(*stages: str) -> bool:
    done = {event["stage"] for event in events() if event["type"] == "progress" and event["done"] > 1}
    return done >= set(stages)


def test_two_jobs_make_the_artifacts_of_one_and_listeners_receive_each_event_once(site: Path) -> None:
    Path("r.yaml").write_text(SUMS.replace("0.25", "0"))
    install(site / "site", "keeper", "keeper")
    (site / "site" / "keeper.py").write_text(KEEPER)
    done = finished()
    assert (done.returncode, done.stderr) == (0, "")
    assert run_here("run", "r.yaml", "--store", "other").code == 0
    for name in ("a", "b", "first", "second", "both"):
        two, one = (vfm.Artifact.load(Path(store, "runs/r/artifacts", name)) for store in ("store", "other"))
        assert two.values == one.values
    kept = Path("kept.txt").read_text().splitlines()
    assert [kept.count(f"{kind} first") for kind in ("stage_started", "metrics", "stage_finished")] == [1, 1, 1]
    *lines, last = done.stdout.splitlines()
    assert [line for line in lines if not re.match(r"(✓ |  )?(a|b|first|second|both) ", line)] == []
    assert "report: store/runs/r/report.html" in last


def test_a_failing_stage_leaves_the_others_to_finish_and_the_next_run_makes_only_the_rest(site: Path) -> None:
    failing = "  - {kind: toy.fail, name: f, number: a, how: user}\n  - {kind: toy.add, name: more, inputs: [f]}\n"
    Path("r.yaml").write_text(SUMS.replace("0.25", "0.05") + failing)
    done = finished()
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: f: the numbers do not add up"]
    assert "✗ f f: the numbers do not add up" in done.stdout
    assert "not run, since they need what failed: more" in done.stdout
    assert vfm.Artifact.load(Path("store/runs/r/artifacts/both")).values
    Path("r.yaml").write_text(SUMS.replace("0.25", "0.05"))
    assert finished().returncode == 0
    cached = [event["stage"] for event in events() if event["type"] == "stage_finished" and event["cached"]]
    assert sorted(cached) == ["a", "b", "both", "first", "second"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_all_stages_frees_their_locks_and_the_next_run_goes_on(
    number: int, code: int, site: Path
) -> None:
    Path("r.yaml").write_text(SUMS)
    process = start()
    wait_for(lambda: has_begun("first", "second"))
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out + err
    wait_for(lambda: not any(is_locked(lock) for lock in Path("store").glob(".toy*.lock")), 60)
    assert not list(Path("store/runs/r/artifacts/first").glob("*")), "its process went on"
    if number == signal.SIGTERM:
        stopped = r"(first, second|second, first): stopped by SIGTERM; the next run resumes from the last checkpoint\n"
        assert re.fullmatch(stopped, err)
    assert finished().returncode == 0
    begun = [(event["stage"], event["status"]) for event in events() if event["type"] == "stage_started"]
    assert {("first", "resume"), ("second", "resume")} <= set(begun)
    assert vfm.Artifact.load(Path("store/runs/r/artifacts/both")).values == [sum(range(24)) * 2 + 24 * 35]


def test_a_signal_ends_a_run_that_waits_for_another_runs_lock(site: Path) -> None:
    Path("r.yaml").write_text(SUMS)
    holder = start()
    wait_for(lambda: has_begun("first", "second"))
    waiting = start("--quiet")
    wait_for(lambda: any("waiting for" in event.get("message", "") for event in events()))
    waiting.terminate()
    assert waiting.wait(timeout=600) == 143
    holder.terminate()
    holder.communicate(timeout=600)


@pytest.mark.parametrize(("word", "reason"), [("0", "x>=1"), ("two", "valid int")])
def test_jobs_that_are_no_number_are_refused(word: str, reason: str, toys: Path) -> None:
    done = run_here("run", "r.yaml", "--jobs", word)
    assert done.code == 2
    assert reason in done.err
    assert not Path("store").exists()


def test_jobs_from_python_also_outside_the_main_thread(site: Path) -> None:
    recipe = {
        "stages": [
            {"kind": "toy.draw", "name": "a"},
            {"kind": "toy.draw", "name": "b", "seed": 5},
            {"kind": "toy.add", "name": "both", "inputs": ["a", "b"]},
        ]
    }
    runs: list[vfm.Run] = []
    thread = threading.Thread(target=lambda: runs.append(vfm.run(recipe, jobs=2, progress=False)))
    thread.start()
    thread.join(timeout=600)
    assert runs[0]["both"].values == [0 + 1 + 2 + 35 + 36 + 37]
    with pytest.raises(vfm.UserError, match=r"^jobs: expected an integer from 1 on, got 0$"):
        vfm.run(recipe, jobs=0, progress=False)


def test_a_step_ends_when_nobody_reads_its_events(site: Path) -> None:
    Path("r.yaml").write_text(SUMS.replace("pause: 0.25", "pause: 30"))
    process = start()
    wait_for(lambda: any(event["stage"] == "second" for event in events()))
    os.kill(process.pid, signal.SIGKILL)  # the steps sleep, and write no event for half a minute
    process.communicate(timeout=20)
    wait_for(lambda: not any(is_locked(lock) for lock in Path("store").glob(".toy*.lock")), 20)
