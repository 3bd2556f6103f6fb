"""`vfm run --jobs 2`: the same artifacts, one event each, readable lines, failures and signals with several stages."""

from __future__ import annotations

import json
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

import toy_plugin
import vfm
from cli_world import install, run_here, toys
from vfm.storage.locks import is_locked

__all__ = ["toys"]
HERE = Path(__file__).parent
SUMS = """\
stages:
  - {kind: toy.draw, name: a, count: 24}
  - {kind: toy.draw, name: b, seed: 5, count: 24}
  - {kind: toy.add, name: first, inputs: [a]}
  - {kind: toy.add, name: second, inputs: [b]}
  - {kind: toy.add, name: both, inputs: [first, second]}
"""
HELD = """\
stages:
  - {kind: toy.draw, name: a}
  - {kind: toy.draw, name: b, seed: 5}
  - {kind: hold.count, name: first, number: a, silent: false}
  - {kind: hold.count, name: second, number: b, silent: false}
"""
KEEPER = """
import toy_plugin
import vfm
@vfm.hookimpl
def vfm_event(event):
    if event.stage:
        with open("kept.txt", "a") as file:
            print(event.type, event.stage, file=file)
"""


@pytest.fixture
def site(toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `toys` with two plugins for processes of their own."""
    for name, module in (("toys", "toy_plugin"), ("holding", "holding_plugin")):
        install(toys / "site", name, module)
        shutil.copy(HERE / f"{module}.py", toys / "site")
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
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""  # the last line may be under way
    return [json.loads(line) for line in whole.splitlines()]


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.02)


def has_begun(*stages: str, after: int = 0) -> bool:
    """Whether stages have worked since a number of events."""
    return {event["stage"] for event in events()[after:] if event["type"] == "progress"} >= set(stages)


def test_two_jobs_make_the_artifacts_of_one_and_listeners_receive_each_event_once(site: Path) -> None:
    Path("r.yaml").write_text(SUMS)
    install(site / "site", "keeper", "keeper")
    (site / "site" / "keeper.py").write_text(KEEPER)
    done = finished()
    assert (done.returncode, done.stderr) == (0, "")
    assert run_here("run", "r.yaml", "--store", "other").code == 0
    for name in ("a", "b", "first", "second", "both"):
        two, one = (toy_plugin.Numbers.load(Path(store, "runs/r/artifacts", name)) for store in ("store", "other"))
        assert two.values == one.values
    kept = Path("kept.txt").read_text().splitlines()
    assert [kept.count(f"{kind} first") for kind in ("stage_started", "metrics", "stage_finished")] == [1, 1, 1]
    *lines, last = done.stdout.splitlines()
    assert [line for line in lines if not re.match(r"(✓ |  )?(a|b|first|second|both) ", line)] == []
    assert "report: store/runs/r/report.html" in last


def test_a_failing_stage_leaves_the_others_to_finish_and_the_next_run_makes_only_the_rest(site: Path) -> None:
    failing = "  - {kind: toy.fail, name: f, number: a, how: user}\n  - {kind: toy.add, name: more, inputs: [f]}\n"
    Path("r.yaml").write_text(SUMS + failing)
    done = finished()
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: r.yaml:7: f: the numbers do not add up"]
    assert "✗ f r.yaml:7: f: the numbers do not add up" in done.stdout
    assert "not run, since they need what failed: more" in done.stdout
    assert toy_plugin.Numbers.load(Path("store/runs/r/artifacts/both")).values
    Path("r.yaml").write_text(SUMS)
    assert finished().returncode == 0
    cached = [event["stage"] for event in events() if event["type"] == "stage_finished" and event["cached"]]
    assert sorted(cached) == ["a", "b", "both", "first", "second"]


def is_free(store: Path) -> bool:
    return not any(is_locked(lock) for lock in store.glob(".*-*.lock"))


@pytest.mark.parametrize("silent", [False, True])  # without events, no broken pipe tells a stage that the run is gone
def test_after_any_signal_all_stages_end_and_the_next_run_goes_on(silent: bool, site: Path) -> None:
    Path("r.yaml").write_text(HELD.replace("silent: false", f"silent: {str(silent).lower()}"))
    Path("hold").touch()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        known = len(events())
        process = start()
        wait_for(lambda known=known: has_begun("first", "second", after=known))  # type: ignore[misc]
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, out + err
        wait_for(lambda: is_free(Path("store")), 60)
        if number == signal.SIGTERM:
            names, _, rest = err.partition(": ")
            assert sorted(names.split(", ")) == ["first", "second"]
            assert rest == "stopped by SIGTERM; the next run resumes from the last checkpoint\n"
    Path("hold").unlink()
    assert finished().returncode == 0
    begun = [event["status"] for event in events() if event["type"] == "stage_started" and event["stage"] == "first"]
    assert begun == ["new", "resume", "resume", "resume"]
    assert all(
        toy_plugin.Numbers.load(Path("store/runs/r/artifacts", name)).values[0] >= 3 for name in ("first", "second")
    )


def test_a_signal_ends_a_run_that_waits_for_another_runs_lock(site: Path) -> None:
    Path("r.yaml").write_text(HELD)
    Path("hold").touch()
    holder = start()
    wait_for(lambda: has_begun("first", "second"))
    waiting = start("--quiet")
    wait_for(lambda: any("waiting for" in event.get("message", "") for event in events()))
    waiting.terminate()
    waiting.communicate(timeout=600)
    assert waiting.returncode == 143
    holder.terminate()
    holder.communicate(timeout=600)


@pytest.mark.parametrize("word", ["0", "-1", "two", "Ray"])
def test_jobs_that_are_no_number_are_refused(word: str, toys: Path) -> None:
    done = run_here("run", "r.yaml", "--jobs", word)
    assert done.code == 2
    assert f"expected a number from 1 on or ray, got {word}" in done.err
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
    with pytest.raises(vfm.UserError, match=r"^jobs: expected an integer from 1 on or ray, got 0$"):
        vfm.run(recipe, jobs=0, progress=False)
