"""The first commands that a new user types."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import vfm.cli.commands  # noqa: F401  (registers the commands)
from cli_world import interruptible  # noqa: F401  (a fixture)
from vfm.base import TerminalConsole
from vfm.cli import app
from vfm.flow.execution.subprocesses import Processes, run_subprocess, start_subprocess
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.interfaces import Event


def typed(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_version_is_that_of_the_package() -> None:
    done = typed("--version")
    assert (done.exit_code, done.output) == (0, f"vfm {version('vfm-core')}\n")


def test_every_command_has_a_short_option_for_its_help() -> None:
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert typed(name, "-h").output == typed(name, "--help").output
        assert typed(name, "-h").exit_code == 0
    assert "Curate, train and evaluate" in typed("-h").output


@pytest.mark.parametrize("data", ["pairs.tar", "shards/{000..099}.tar", "table.csv", "photos", "."])
def test_data_in_place_of_a_recipe_are_answered_with_the_commands_for_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("pairs.tar").touch()
    done = typed("run", data)
    assert done.exit_code == 2
    assert done.output.startswith(f"error: {data}: expected a recipe, got data; to look at them: vfm data ")
    assert f"vfm data {shlex.quote(data)}; to train on them: vfm run pairs --set " in done.output
    assert len(done.output.splitlines()) == 1


def test_a_scheduler_is_checked_before_the_recipe() -> None:
    done = typed("run", "no_such_recipe", "--on", "slrum")
    assert (done.exit_code, done.output) == (2, "error: --on: expected slurm or local, got slrum\n")


def test_verify_takes_the_store_as_the_other_commands_do(tmp_path: Path) -> None:
    lines = [typed("verify", *words, tmp_path / "nowhere").output for words in ([], ["--store"])]
    assert lines[0] == lines[1]
    assert "nowhere" in lines[0]


def test_an_option_without_its_value_says_what_it_expects() -> None:
    done = typed("run", "quickstart", "--prepare")
    assert done.exit_code == 2
    assert "--prepare: expected a value: name of a stage to prepare for torchrun elsewhere" in done.output


def test_a_suite_below_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    done = typed("eval", "ViT-B-32,openai", "--suite", "small", "--root", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert done.output.splitlines() == [
        f"error: root {tmp_path}/nowhere: no such folder; expected the folder of the datasets of small"
    ]


def test_blank_lines_of_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\n\nb\n \n")
    done = typed("embed", "model", "--texts", tmp_path / "texts.txt", "--out", tmp_path / "e.npy")
    assert done.exit_code == 2
    assert done.output.endswith("texts.txt: expected a text in every line, got blank lines: 2, 4\n")


def test_a_repeated_warning_is_printed_once() -> None:
    console = TerminalConsole(file=StringIO(), width=120)
    listener = ConsoleListener(console)
    for message in ("slow disk", "slow disk", "another"):
        listener.on_warning("clip", {"message": message})
    listener.on_warning("eva", {"message": "slow disk"})
    assert console.file.getvalue() == "  ! clip: slow disk\n  ! clip: another\n  ! eva: slow disk\n"


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_says_which_step_several_processes_save(tmp_path: Path) -> None:
    """A process that reports step 7 and is then interrupted, as in a terminal."""
    event = Event("progress", "clip", {"done": 7, "total": 9, "unit": "steps", "shown": {}}).to_json()
    script = f"import os, signal, time; print({event!r}, flush=True); time.sleep(1)"
    script += "; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    (tmp_path / "work").mkdir()
    step: Any = SimpleNamespace(stage=SimpleNamespace(name="clip"), slot=SimpleNamespace(work=tmp_path / "work"))
    sent: list[Event] = []
    read, write = os.pipe()
    command = [sys.executable, "-c", script]
    with pytest.raises(KeyboardInterrupt):
        run_subprocess(partial(start_subprocess, command, os.environ), step, sent.append, write, Processes())
    os.close(read)
    os.close(write)
    assert [event.data.get("message") for event in sent] == [None, "stopping, saving step 7 or the one after it"]
