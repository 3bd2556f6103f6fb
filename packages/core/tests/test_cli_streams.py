"""Output that a user cuts off, closes or cannot encode, and prints that stand among events: no run ends by them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import noisy_plugin
import toy_plugin
import vfm
from cli_world import RECIPE, install, run_here, toys
from vfm.flow.execution.run import run_plan
from vfm.flow.listeners.listeners import sender
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.interfaces import Event, load_plugins

__all__ = ["toys"]
HERE = Path(__file__).parent
VFM = f"{sys.executable} -m vfm"
KNOWN = {stage.kind_name(): stage for stage in [*toy_plugin.vfm_stages(), *noisy_plugin.vfm_stages()]}


@pytest.fixture
def site(toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `toys` with both plugins, for processes of their own."""
    for name, module in (("toys", "toy_plugin"), ("noisy", "noisy_plugin")):
        install(toys / "site", name, module)
        shutil.copy(HERE / f"{module}.py", toys / "site")
    monkeypatch.setenv("PYTHONPATH", str(toys / "site"))
    return toys


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", command], capture_output=True, env={**os.environ, **environment}, timeout=1800)


def finished() -> bool:
    return json.loads(Path("store/runs/r/run.json").read_text())["seconds"] is not None


def run_noise(stage: str, store: Path, jobs: int) -> list[Event]:
    events: list[Event] = []
    recipe = parse_recipe(f"stages: [{stage}]", KNOWN, name="r", where="r.yaml")
    run_plan(recipe, make_plan(recipe, Store(store)), Store(store), events.append, jobs=jobs)
    return events


def test_prints_of_a_step_in_a_process_of_its_own_are_no_events(site: Path) -> None:
    events = run_noise("{kind: noise.print, name: n}", site / "store", jobs=2)
    assert [event.type for event in events] == ["run_started", "stage_started", "log", "stage_finished"]
    assert vfm.Artifact.load(site / "store/runs/r/artifacts/n").values == [7]


def test_prints_of_a_failing_step_are_shown_with_its_error(site: Path) -> None:
    with pytest.raises(RuntimeError, match="its process failed") as failed:
        run_noise("{kind: noise.print, name: n, exit_code: 3}", site / "store", jobs=2)
    assert '{"stray": 1}' in str(failed.value)


def test_stage_that_ends_the_process_does_not_end_the_run_silently(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(RuntimeError, match="n: its code ended the process, with code 0"):
        run_noise("{kind: noise.print, name: n, exit_code: 0}", tmp_path, jobs=1)


def test_listener_that_ends_the_process_is_removed_with_a_warning() -> None:
    class Keeper:
        def __init__(self) -> None:
            self.events: list[Event] = []

        @vfm.hookimpl
        def vfm_event(self, event: Event) -> None:
            self.events.append(event)

    manager, keeper = load_plugins(), Keeper()
    manager.register(noisy_plugin.Leaver(), "leaver")
    send = sender(manager, [keeper])
    for number in range(2):
        send(Event("log", None, {"message": str(number)}))
    types = [event.type for event in keeper.events]
    assert sorted(types) == ["log", "log", "warning"]
    (warning,) = (event for event in keeper.events if event.type == "warning")
    assert "plugin 'leaver': its listener failed and was removed: SystemExit: 0" in warning.data["message"]


def test_run_goes_on_when_the_reader_of_its_output_ends(site: Path) -> None:
    done = shell(f"{VFM} run r.yaml --set sum.pause=0.05 | head -1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"a toy.draw")
    assert finished()


@pytest.mark.parametrize(
    "command",
    [f"{VFM} run r.yaml >&-", f"{VFM} run r.yaml <&- >&- 2>&-", f"PYTHONIOENCODING=ascii {VFM} run r.yaml"],
    ids=["stdout closed", "all closed", "ASCII"],
)
def test_run_without_a_usable_output_succeeds(command: str, site: Path) -> None:
    Path("größe.yaml").write_text(RECIPE)
    done = shell(command.replace("r.yaml", "größe.yaml"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(Path("store/runs/größe/run.json").read_text())["seconds"] is not None
    assert all(json.loads(line) for line in Path("store/runs/größe/events.jsonl").read_text().splitlines())
    if done.stdout:
        assert done.stdout.isascii()
        assert b"report: store/runs/gr\\xf6\\xdfe/report.html" in done.stdout


@pytest.mark.parametrize("command", ["--help", "plan r.yaml", "run r.yaml"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full")
def test_output_that_cannot_be_written_is_one_line(command: str, site: Path) -> None:
    done = shell(f"{VFM} {command} > /dev/full")
    line = b"error: the standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_commands_work_without_docstrings(site: Path) -> None:
    python = f"{sys.executable} -OO -m vfm"
    for command in ("run r.yaml", "stages"):
        done = shell(f"{python} {command}")
        assert (done.returncode, done.stderr) == (0, b""), command
    assert finished()


def test_what_fails_without_docstrings_says_why(site: Path) -> None:
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.fail, name: f, number: sum}\n")
    done = shell(f"{sys.executable} -OO -m vfm run r.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: python -OO removes docstrings")
    assert done.stderr.count(b"\n") == 1


def test_control_and_bidirectional_characters_are_shown_escaped(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site / "site")
    odd = "\x1b]0;owned\x07 [/red] photo\u202egpj.exe \x9b2J"
    Path("r.yaml").write_text(f"stages: [{{kind: noise.print, name: n, message: {json.dumps(odd)}}}]\n")
    done = run_here("run", "r.yaml")
    assert done.code == 0
    assert r"\x1b]0;owned\x07 [/red] photo\u202egpj.exe \x9b2J" in done.out
    page = Path("store/runs/r/report.html").read_text()
    for text in (done.out, page):
        assert not set(text) & set("\x1b\x07\u202e\x9b")
    assert r"photo\u202egpj.exe" in page
