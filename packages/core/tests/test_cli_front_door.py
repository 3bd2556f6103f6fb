"""The first commands that a new user types."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import vfm.cli  # noqa: F401  (registers the commands)
from vfm.cli.command import app


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


@pytest.mark.parametrize("data", ["pairs.tar", "shards/{000..099}.tar", "table.csv", "photos"])
def test_data_in_place_of_a_recipe_are_answered_with_the_commands_for_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("pairs.tar").touch()
    done = typed("run", data)
    assert done.exit_code == 2
    assert done.output.startswith(f"error: {data}: expected a recipe, got data. Look at them: vfm data ")
    assert len(done.output.splitlines()) == 1


def test_a_scheduler_is_checked_before_the_recipe() -> None:
    done = typed("run", "no_such_recipe", "--on", "slrum")
    assert (done.exit_code, done.output) == (2, "error: --on: expected slurm or local, got slrum\n")


def test_verify_takes_the_store_as_the_other_commands_do(tmp_path: Path) -> None:
    lines = [typed("verify", *words, tmp_path / "nowhere").output for words in ([], ["--store"])]
    assert lines[0] == lines[1]
    assert "nowhere" in lines[0]
