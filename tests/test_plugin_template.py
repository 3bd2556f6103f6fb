"""The template of a plugin: a package made from it is installed beside vfm, passes its tests and runs its recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import copier
import pytest

from outside import ROOT, Installed, call, checked, install

TEMPLATE = ROOT / "examples/plugin_template"


def made(folder: Path, **answers: str) -> Path:
    copier.run_copy(str(TEMPLATE), folder, data=answers, defaults=True, quiet=True)
    return folder


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("template")
    package = made(folder / "vfm-captions", name="vfm-captions")
    return install(folder, wheels, "vfm-core[report]", "pytest>=8.4", package)


def test_its_own_tests_pass(installed: Installed) -> None:
    command = (installed.python, "-m", "pytest", "-q", "-W", "error", "vfm-captions")
    assert "3 passed" in checked(call(*command, cwd=installed.folder)).stdout


def test_its_recipe_runs_and_its_stage_is_listed(installed: Installed) -> None:
    checked(installed.vfm("run", "vfm-captions/recipe.yaml"))
    assert "Captions by count" in (installed.folder / "store/runs/recipe/report.html").read_text()
    assert "vfm-captions 0.1.0" in checked(installed.vfm("plugins")).stdout
    fields = checked(installed.vfm("stages", "captions.measure")).stdout
    assert "what is counted in a caption" in fields


def test_the_last_message_names_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copier.run_copy(str(TEMPLATE), tmp_path / "elsewhere", data={"name": "my-plugin"}, defaults=True)
    command = f'cd "{tmp_path}/elsewhere" && pip install . && pytest && vfm run recipe.yaml'
    assert command in capsys.readouterr().err


def test_what_it_makes_passes_this_repositorys_style(tmp_path: Path) -> None:
    package = made(tmp_path / "long-name-of-a-plugin", name="long-name-of-a-plugin", domain="counts")
    for check in (["format", "--check"], ["check", "--ignore", "D,I"]):
        command = [sys.executable, "-m", "ruff", *check, "--config", ROOT / "pyproject.toml", package]
        checked(subprocess.run(command, capture_output=True, text=True))
    assert "{{" not in "".join(file.read_text() for file in package.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ({"name": "My Plugin"}, "lower-case words joined by hyphens"),
        ({"name": "vfm"}, "two or more lower-case words joined by hyphens"),
        ({"name": "vfm-core"}, "vfm-core is a package of vfm; choose another name"),
        ({"name": "my-clip"}, "clip has stages already; choose another word"),
        ({"domain": "Two words"}, "a lower-case word"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, answers: dict[str, str], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        made(tmp_path / "plugin", **answers)
    assert not (tmp_path / "plugin").exists()
