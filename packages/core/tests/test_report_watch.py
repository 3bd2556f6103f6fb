"""`vfm report --watch`: the page of a run that goes on in another process, until that ends, fails or is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli_world import Outcome, install, run_here
from vfm.flow.listeners.listeners import JsonLinesListener
from vfm.interfaces import Event
from vfm.report import is_current
from vfm.report.live import RunLog
from vfm.storage.locks import is_locked

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

PLUGIN = '''
import json, time
from pathlib import Path
from typing import Literal
import vfm

class Drawn(vfm.Artifact):
    text: str

class Curve(vfm.Stage):
    """Writes the lines of a training, the last one not to its end, and waits for a file."""

    kind: Literal["live.curve"] = "live.curve"
    fails: bool = False
    lr: float = 1.0

    def run(self, ctx: vfm.Context) -> Drawn:
        with (ctx.work / "metrics.jsonl").open("w") as lines:
            for step in (1, 2, 3):
                lines.write(json.dumps({"step": step, "split": "train", "train/loss": 1 / step}) + chr(10))
            lines.write('{"step": 4, "spl')
        ctx.progress(3, 5, "steps")
        while not Path("go").exists():
            time.sleep(0.05)
        if self.fails:
            raise vfm.UserError("the loss is not finite")
        return Drawn.create(ctx.directory, text="done")

@vfm.hookimpl
def vfm_stages():
    return [Curve]
'''
RECIPE = """\
description: Two trainings.
stages:
  - {kind: live.curve, name: first}
  - {kind: live.curve, name: second, fails: FAILS}
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for another process; a deadline, so that a bug ends the test."""
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the other process did not get there")


class World:
    """A folder with a recipe and a plugin, in which commands run in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.here, self.site = folder / "here", folder / "site"
        self.processes: list[subprocess.Popen[str]] = []
        install(self.site, "live", "live_plugin")
        (self.site / "live_plugin.py").write_text(PLUGIN)
        self.here.mkdir()
        self.run = self.here / "store/runs/r@1"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command."""
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "vfm", *words]
        process = subprocess.Popen(
            command,
            cwd=self.here,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A job in the background ignores Ctrl-C, and hands that down: this process must not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.processes.append(process)
        return process

    def start_run(self, *, fails: bool = False) -> subprocess.Popen[str]:
        """Start the run, and wait until its first training is under way."""
        (self.here / "r.yaml").write_text(RECIPE.replace("FAILS", str(fails).lower()))
        process = self.start("run", "r.yaml")
        events = self.run / "events.jsonl"
        until(lambda: process.poll() is not None or (events.is_file() and '"progress"' in events.read_text()))
        return process

    @property
    def page(self) -> str:
        """The page as it is now; empty if there is none."""
        file = self.run / "report.html"
        return file.read_text(encoding="utf-8") if file.is_file() else ""


def ended(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.syspath_prepend(made.site)
    monkeypatch.chdir(made.here)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_the_page_follows_a_run_to_its_end(world: World) -> None:
    run = world.start_run()
    watcher = world.start("report", "r", "--watch")
    until(lambda: "3 of 5 steps" in world.page or watcher.poll() is not None)
    page = world.page
    assert "Two trainings." in page
    assert 'data-reload="5"' in page
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page
    assert page.count('<span class="pill running">') == page.count('<span class="pill waiting">') == 1
    assert "<h4>Training loss</h4>" in page
    assert not is_current(world.run), "the run itself draws its page when it ends"
    (world.here / "go").touch()
    assert ended(run).code == 0
    followed = ended(watcher)
    assert (followed.code, followed.err) == (0, "")
    assert followed.out.splitlines()[0].startswith(f"watching r: open file://{world.here}/store/runs/r/report.html")
    assert is_current(world.run)
    assert "data-reload" not in world.page.partition("<body>")[0]
    again = run_here("report", "r", "--watch", "--out", "mine.html")
    assert again.code == 0, "a run that has ended is drawn, and that is all"
    assert Path("mine.html").is_file()
    line = "error: .: expected a file to write the report to, got a folder"
    assert run_here("report", "r", "--watch", "--out", ".").errors == [line]


def test_a_failed_run_ends_the_watch_with_its_reason(world: World) -> None:
    (world.here / "go").touch()
    assert ended(world.start_run(fails=True)).code == 2
    done = run_here("report", "r", "--watch")
    assert (done.code, done.errors) == (2, ["error: the run has stopped: r.yaml:4: second: the loss is not finite"])
    assert '<span class="pill stopped">stopped</span>' in world.page
    assert "data-reload" not in world.page.partition("<body>")[0]


def test_a_watch_is_interrupted_without_harm_and_ends_when_the_run_is_killed(world: World) -> None:
    run = world.start_run()
    watcher = world.start("report", "r", "--watch")
    until(lambda: bool(world.page) or watcher.poll() is not None)
    watcher.send_signal(signal.SIGINT)
    assert ended(watcher).code == 130
    assert run.poll() is None, "the run goes on"
    run.kill()
    run.communicate()
    done = run_here("report", "r", "--watch")
    assert (done.code, done.errors) == (2, ["error: the run has stopped: no process is running it"])
    with (world.run / "events.jsonl").open("a") as events:  # as if it had been killed between two stages
        events.write(Event("stage_finished", "first", {"seconds": 1.0}).to_json() + "\n")
    assert run_here("report", "r", "--watch").errors == done.errors


def test_a_run_is_alive_while_its_events_may_come(tmp_path: Path) -> None:
    one, other = (JsonLinesListener(tmp_path / "events.jsonl") for _ in range(2))
    one.close()
    assert is_locked(tmp_path / "events.jsonl"), "two processes may run the same plan"
    other.close()
    assert not is_locked(tmp_path / "events.jsonl")


def test_progress_is_shown_with_and_without_a_known_total(tmp_path: Path) -> None:
    events = JsonLinesListener(tmp_path / "events.jsonl")
    for stage, total in (("pool", None), ("clip", 2000)):
        events.vfm_event(Event("progress", stage, {"done": 1200, "total": total, "unit": "steps", "shown": {}}))
    events.close()
    log = RunLog(tmp_path / "events.jsonl")
    log.update()
    assert log.progress == {"pool": "1,200 steps", "clip": "1,200 of 2,000 steps"}


def test_wrong_words_are_one_line(world: World) -> None:
    done = run_here("report", "r", "--watch")
    assert (done.code, done.errors) == (2, ["error: no run 'r' in store; start it in another terminal, then watch it"])
    assert run_here("report", "a", "b", "--watch").errors == ["error: --watch: expected one run, got 2"]
