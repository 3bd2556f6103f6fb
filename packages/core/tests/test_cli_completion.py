"""Tab completes recipes, kinds, models, runs and formats: the shell's request, as typer's scripts send it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import vfm.cli.commands  # noqa: F401  (registers the commands)
from vfm.cli import app
from vfm.cli.fields.field_table import field_rows, overview
from vfm.flow.recipe.shipped import shipped_files
from vfm.interfaces import load_plugins, stage_types

KINDS = stage_types(load_plugins())


def completions(line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    request = {"_VFM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return CliRunner().invoke(app, prog_name="vfm", env=request).output.split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("store/runs/pairs@1/artifacts/clip", "store/runs/other@2/artifacts/eva", "photos"):
        Path(folder).mkdir(parents=True)
    Path("store/runs/pairs").symlink_to("pairs@1")
    Path("photos.yaml").touch()
    Path("photos.csv").touch()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vfm run quick", ["quickstart"]),
        ("vfm plan pho", ["photos/", "photos.yaml"]),
        ("vfm init --like clip_f", ["clip_finetune", "clip_flickr"]),
        ("vfm stages data.pa", ["data.pairs"]),
        ("vfm report pai", ["pairs", "pairs@1"]),
        ("vfm eval store/runs/p", ["store/runs/pairs/artifacts/clip", "store/runs/pairs/", "store/runs/pairs@1/"]),
        ("vfm export m --format o", ["open_clip", "onnx"]),
        ("vfm run quickstart --on s", ["slurm"]),
        ("vfm eval m --suite di", ["diva29"]),
        ("vfm from cl", ["clip_benchmark"]),
    ],
)
def test_tab_completes_the_last_word(line: str, expected: list[str], here: None) -> None:
    installed = [word for word in expected if word not in ("quickstart", "clip_finetune", "clip_flickr") or known(word)]
    assert completions(line) == installed


def known(recipe: str) -> bool:
    """Whether the package of a recipe is installed: core's tests also run alone."""
    return recipe in shipped_files("recipes")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fields_of_a_kind_fit_two_screens_of_80_columns_with_the_required_ones_first(kind: str) -> None:
    lines = overview(KINDS[kind], 80)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 50
    rows = [row for row in field_rows(KINDS[kind]) if not set(".[(") & set(row.cells[0])]
    shown = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(shown) == sorted(row.cells[0] for row in rows)
    required = {row.cells[0] for row in rows if row.cells[2] == "required"}
    assert set(shown[: len(required)]) == required


def test_a_group_and_all_fields_are_shown_in_full() -> None:
    def typed(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["stages", *words])
        return done.exit_code, done.output

    code, group = typed("shapes.pool", "runtime")
    assert (code, "runtime.processes" in group, "num_samples" in group) == (0, True, False)
    assert "runtime.processes" not in typed("shapes.pool")[1]
    assert "runtime.processes" in typed("shapes.pool", "--all")[1]
    assert typed("shapes.pool", "runtme")[0] == 2
