"""Runs of a store: each is kept under its number, and belongs to its recipe's file."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest

import vfm
from cli_world import RECIPE, Outcome, run_here, toys
from vfm.flow.plan.store import Store
from vfm.flow.recipe.run_names import MAX_BYTES, run_name
from vfm.flow.records.runs import kept_runs

__all__ = ["toys"]
STORE = Store(Path("store"))


def ran(*words: str | Path) -> Outcome:
    done = run_here("run", *words)
    assert done.code == 0, done
    return done


def total(run: str) -> list[int]:
    return vfm.Artifact.load(STORE.run_directory(run) / "artifacts/sum").values


def folders() -> list[str]:
    return [run.directory.name for run in kept_runs(STORE)]


def test_every_run_is_kept_under_its_number_with_its_resolved_recipe(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/vfm", "run", "r.yaml"])
    ran("r.yaml")
    ran("r.yaml", "--set", "b.seed=6")
    assert folders() == ["r@1", "r@2"]
    assert (total("r@1"), total("r@2"), total("r")) == ([3893], [5552], [5552])
    resolved = (STORE.run_directory("r") / "recipe.yaml").read_text()
    assert resolved.startswith("# r.yaml, with --set b.seed=6\n")
    assert "seed: 6" in resolved
    assert (STORE.run_directory("r@1") / "recipe.yaml").read_text() == RECIPE
    (toys / "again.yaml").write_text(resolved)
    assert ran("again.yaml").out.count("cached") == 3
    listed = run_here("runs").out
    assert [line.split()[0] for line in listed.splitlines()] == ["again@1", "r@1", "r@2"]
    assert listed.splitlines()[1].endswith(" vfm run r.yaml")


def test_the_same_plan_is_the_same_run_and_the_name_leads_to_the_one_started_last(toys: Path) -> None:
    ran("r.yaml")
    ran("r.yaml", "--set", "b.seed=6")
    ran("r.yaml")
    assert folders() == ["r@1", "r@2"]
    assert total("r") == [3893]
    ran("r.yaml", "--fresh")
    assert folders() == ["r@1", "r@2"]


def test_report_draws_any_run(toys: Path) -> None:
    ran("r.yaml")
    ran("r.yaml", "--set", "b.seed=6")
    pages = {name: STORE.run_directory(name) / "report.html" for name in ("r@1", "r@2")}
    for page in pages.values():
        page.unlink()
    assert run_here("report", "r@1").code == 0
    assert [page.exists() for page in pages.values()] == [True, False]
    assert run_here("report", "r.yaml", "--out", "mine.html").code == 0
    assert "seed: 6" in Path("mine.html").read_text()


def test_two_recipes_of_one_file_name_keep_apart(toys: Path) -> None:
    for folder, seed in (("one", 1), ("two", 2)):
        (toys / folder).mkdir()
        (toys / folder / "r.yaml").write_text(RECIPE.replace("seed: 5", f"seed: {seed}"))
        ran(f"{folder}/r.yaml")
    ran("one/r.yaml")
    assert folders() == ["r@1", "r-2@1"]
    assert (total("r"), total("r-2")) == ([197], [680])
    assert "belongs to another recipe" in ran("two/r.yaml").out
    assert "nothing to remove" in run_here("clean").out
    assert "seed: 2" in _reported("two/r.yaml")
    assert "seed: 1" in _reported("one/r.yaml")
    (toys / "three").mkdir()
    (toys / "three/r.yaml").write_text(RECIPE)
    assert run_here("report", "three/r.yaml").code == 2  # has not run, and shows no other's


def _reported(recipe: str) -> str:
    assert run_here("report", recipe, "--out", "page.html").code == 0
    return Path("page.html").read_text()


def test_a_project_moved_with_its_store_goes_on_with_its_runs(toys: Path) -> None:
    ran("r.yaml")
    shutil.copytree(toys, toys.parent / "moved", symlinks=True)
    os.chdir(toys.parent / "moved")
    shutil.rmtree(toys)
    ran("r.yaml", "--set", "b.seed=6")
    assert folders() == ["r@1", "r@2"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_keep_their_script(form: str, toys: Path) -> None:
    names = ["größe", "実験", "опыт", "प्रयोग"]
    for name in names:
        (toys / f"{unicodedata.normalize(form, name)}.yaml").write_text(RECIPE)
        ran(f"{unicodedata.normalize(form, name)}.yaml")
    assert {path.name for path in STORE.runs.iterdir() if path.is_symlink()} == set(names)
    assert all(unicodedata.is_normalized("NFC", path.name) for path in STORE.runs.iterdir())
    assert run_here("report", "größe").code == 0


def test_names_are_safe_on_file_systems() -> None:
    assert run_name("my recipe.v2 [red]") == "my-recipe-v2-red-"
    assert run_name("a@2") == "a-2"  # a number of a run looks so
    assert run_name("..") == run_name("💥") == "recipe"
    assert run_name("\udcff/x\x00y") == "x-y"
    assert run_name(".hidden") == run_name("--hidden") == "hidden"  # a command would take `-hidden` for an option
    long = run_name("é" * 300)
    assert len(long.encode()) == MAX_BYTES
    assert set(long) == {"é"}


def test_folder_of_a_version_without_numbers_becomes_the_first_run(toys: Path) -> None:
    ran("r.yaml")
    STORE.run_directory("r").unlink()
    STORE.run_directory("r@1").rename(STORE.run_directory("r"))
    record = STORE.run_directory("r") / "run.json"
    record.write_text(
        json.dumps(
            {key: value for key, value in json.loads(record.read_text()).items() if key not in ("file", "sha256")}
        )
    )
    assert run_here("report", "r").code == 0
    ran("r.yaml", "--set", "b.seed=6")
    assert folders() == ["r@1", "r@2"]
    assert "nothing to remove" in run_here("clean").out


def test_clean_says_nothing_of_artifacts_where_it_removes_a_run_only(toys: Path) -> None:
    recipe = (toys / "r.yaml").read_text()
    (toys / "r.yaml").write_text("".join(recipe.splitlines(keepends=True)[:-1]))
    ran("r.yaml")
    (toys / "r.yaml").write_text(recipe)
    ran("r.yaml")
    assert run_here("clean", "--keep-runs", 1).out == "removed run r@1\n"


def test_clean_keeps_what_any_run_links_and_removes_old_runs_when_asked(toys: Path) -> None:
    for seed in (5, 6, 7):
        ran("r.yaml", "--set", f"b.seed={seed}")
    ran("r.yaml", "--set", "b.seed=5")  # the one that was started last is kept, whatever its number
    assert "nothing to remove" in run_here("clean").out
    assert "removed run r@2" in run_here("clean", "--keep-runs", 1).out
    assert folders() == ["r@1", "r@3"]
    for seed in (5, 7):
        assert ran("r.yaml", "--set", f"b.seed={seed}").out.count("cached") == 3


def test_interrupted_run_is_listed_as_such_and_its_page_has_what_there_is(toys: Path) -> None:
    run_here("run", "r.yaml", "--prepare", "sum")
    assert "  stopped  " in run_here("runs").out
    assert "r@1 has stopped; the page has its finished stages" in run_here("report", "r").err
    ran("r.yaml")
    assert folders() == ["r@1"]
    assert "  stopped  " not in run_here("runs").out


def test_page_is_drawn_again_by_what_changed_and_not_by_the_clock(toys: Path) -> None:
    ran("r.yaml")
    page = STORE.run_directory("r") / "report.html"
    os.utime(page, (4e9, 4e9))  # the clock was set back after this
    Path("r.yaml").write_text("description: Other words.\n" + RECIPE)
    ran("r.yaml")
    assert "Other words." in page.read_text()
    os.utime(page, (1, 1))
    before = page.stat().st_ino
    ran("r.yaml")
    assert page.stat().st_ino == before
