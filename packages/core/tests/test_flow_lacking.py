"""Data that an artifact lacks: cached artifacts repeat the warning, and it goes when the data are back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

import vfm
from vfm.flow.execution.run import run_plan
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.manifest import read_manifest

AGAIN = "(when it was made; `vfm run RECIPE --until looked --fresh` makes it again, with its inputs)"


class KilledError(Exception):
    """Stand in for the death of the process."""


class Looked(vfm.Artifact):
    """Whether a file was there."""

    found: bool


class Look(vfm.Stage):
    """Looks for a file whose content is not part of its identity."""

    kind: Literal["toy.look"] = "toy.look"
    path: str

    def run(self, ctx: vfm.Context) -> Looked:
        (ctx.work / "begun").touch()
        if not Path(self.path).exists():
            ctx.warn("1 of 1 files is missing", lacks_data=True)
            ctx.skip("missing", self.path, lacks_data=True)
            ctx.skip("small", self.path, lacks_data=True)
        ctx.skip("small", f"{self.path}: line 1")
        ctx.warn("looking is slow")
        ctx.progress(1, 1, "files")
        return Looked.create(ctx.directory, found=Path(self.path).exists())


def look(folder: Path, *, fresh: bool = False, killed: bool = False) -> tuple[list[str], list[str]]:
    """Run the stage, and return the warnings that are shown and the ones in the manifest."""
    shown, manifest = run_look(folder, fresh=fresh, killed=killed)
    return shown, manifest["warnings"]


def run_look(folder: Path, *, fresh: bool = False, killed: bool = False) -> tuple[list[str], dict[str, Any]]:
    """Run the stage, and return the warnings that are shown and the manifest."""
    text = f"stages:\n  - {{kind: toy.look, name: looked, path: '{folder / 'a.txt'}'}}\n"
    recipe = parse_recipe(text, {"toy.look": Look}, (), name="r", where="r.yaml")
    steps = make_plan(recipe, Store(folder / "store"))
    shown = []

    def send(event: vfm.Event) -> None:
        if event.type == "warning":
            shown.append(event.data["message"])
        if killed and event.type == "progress":
            raise KilledError

    run_plan(recipe, steps, Store(folder / "store"), send, fresh=fresh)
    return shown, read_manifest(steps[0].slot.artifact)


def test_a_cached_stage_repeats_what_it_lacks_and_how_to_make_it_again(tmp_path: Path) -> None:
    lacking = "1 of 1 files is missing"
    assert look(tmp_path) == ([lacking, "looking is slow"], ["looking is slow", lacking])
    (tmp_path / "a.txt").touch()
    for _ in range(2):
        assert look(tmp_path) == ([f"{lacking} {AGAIN}"], ["looking is slow", lacking])
    assert look(tmp_path, fresh=True) == (["looking is slow"], ["looking is slow"])
    assert look(tmp_path)[0] == []


def test_data_that_are_back_when_a_stage_resumes_are_not_missing_in_its_record(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        look(tmp_path, killed=True)
    (tmp_path / "a.txt").touch()
    assert look(tmp_path) == (["looking is slow"], ["looking is slow"])


def test_the_places_of_data_that_are_back_when_a_stage_resumes_are_not_in_its_record(tmp_path: Path) -> None:
    file = str(tmp_path / "a.txt")
    line = f"{file}: line 1"
    with pytest.raises(KilledError):
        look(tmp_path, killed=True)
    (tmp_path / "a.txt").touch()
    manifest = run_look(tmp_path)[1]
    assert (manifest["bad_samples"], manifest["bad_examples"]) == ({"small": 1}, {"small": [line]})
    (tmp_path / "a.txt").unlink()
    manifest = run_look(tmp_path, fresh=True)[1]
    assert manifest["bad_examples"] == {"missing": [file], "small": [line, file]}
