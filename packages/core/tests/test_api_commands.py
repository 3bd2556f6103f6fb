"""Functions of `vfm` that match commands: the same arguments, the same files, the same numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vfm
from cli_world import run_here
from eval_world import labeled, png, tiny_clip
from vfm.cli import catalogue, distill, evaluation, finetune, models, recipe, search, store

# A command, its function, and the options that only one of them has: the console, and files that a command writes.
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any], str, str]] = {
    "run": (recipe.run, vfm.run, "prepare until on job_per_stage job quiet", "name progress"),
    "eval": (evaluation.eval, vfm.evaluate, "data_option language out dry_run quiet", "languages progress"),
    "finetune": (finetune.finetune, vfm.finetune, "recipe dry_run quiet", "name progress"),
    "distill": (distill.distill, vfm.distill, "recipe dry_run quiet", "name progress"),
    "embed": (models.embed, vfm.embed, "out data_option", "progress"),
    "predict": (models.predict, vfm.predict, "draw out", "warn"),
    "view": (models.view, vfm.view, "", ""),
    "export": (models.export, vfm.export, "", ""),
    "search": (search.search, vfm.search, "out data data_option", "warn"),
    "models": (catalogue.models, vfm.list_models, "", ""),
    "recipes": (catalogue.recipes, vfm.list_recipes, "", ""),
    "runs": (store.runs, vfm.list_runs, "", ""),
    "report": (store.report, vfm.draw_report, "watch", "warn"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_arguments_and_their_defaults_are_those_of_the_command(name: str) -> None:
    command, function, only_command, only_function = PAIRS[name]
    ours, theirs = (dict(inspect.signature(call).parameters) for call in (command, function))
    assert set(ours) - set(theirs) == {*only_command.split(), "debug"}
    assert set(theirs) - set(ours) == set(only_function.split())
    for argument in set(ours) & set(theirs):
        defaults = [_plain(call[argument].default) for call in (ours, theirs)]
        assert defaults[0] == defaults[1], argument


def _plain(default: Any) -> Any:
    """Write what a command cannot say, such as None and a list of words, as the command does."""
    if default is inspect.Parameter.empty or default in (None, "", ()):
        return None
    return ",".join(default) if isinstance(default, tuple) else str(default)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model, labelled images, two images, and two runs."""
    here = tmp_path_factory.mktemp("commands")
    tiny_clip(here / "clip", 0)
    labeled(here / "labeled", 7)
    for name in ("red", "blue"):
        (here / f"{name}.png").write_bytes(png(name))
    for number in (6, 9):
        made = {"kind": "shapes.classes", "name": "val", "num_samples": number}
        vfm.run({"stages": [made]}, store=here / "store", name="shapes", progress=False)
    return here


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_views_are_the_files_of_the_command(world: Path) -> None:
    images = [world / "red.png", world / "blue.png"]
    views = vfm.view(world / "clip", images, world / "views")
    assert run_here("view", world / "clip", *images, "--out", world / "drawn").code == 0
    assert files_of(world / "views") == files_of(world / "drawn")
    assert views.table().to_pylist()[1] == {"image": str(images[1]), "file": str(world / "views/blue.png")}


def test_an_export_is_that_of_the_command(world: Path) -> None:
    planned = vfm.export(world / "clip", "open_clip", world / "theirs", dry_run=True)
    assert (planned.table().num_rows, (world / "theirs").exists()) == (0, False)
    done = vfm.export(world / "clip", "open_clip", world / "theirs")
    command = run_here("export", world / "clip", "--format", "open_clip", "--out", world / "ours")
    assert command.out.replace("/ours", "/theirs").splitlines()[0] == done.title
    assert files_of(world / "theirs") == files_of(world / "ours")
    assert {row["file"] for row in done.table().to_pylist()} == set(files_of(world / "ours"))
    with pytest.raises(vfm.UserError, match="theirs already exists"):
        vfm.export(world / "clip", "open_clip", world / "theirs")


def test_a_search_finds_what_the_command_finds(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    vfm.embed("clip", "labeled", progress=False).save("index.parquet")
    command = run_here("search", "red.png", "a red boat", "--index", "index.parquet", "--data", "labeled", "--top", 3)
    assert command.code == 0, command.err
    result = vfm.search(["red.png", "a red boat"], "index.parquet", model="clip", top=3)
    rows = result.table().to_pylist()
    assert [(row["query"], row["rank"]) for row in rows] == [
        (q, n) for q in ("red.png", "a red boat") for n in (1, 2, 3)
    ]
    assert [f"{row['similarity']:6.3f}  {row['key']}" for row in rows] == [
        line[2:].rsplit("  ", 1)[0] for line in command.out.splitlines() if line.startswith("  ")
    ]
    assert result.sheet("labeled").tobytes() == Image.open("search.png").convert("RGB").tobytes()


def test_a_report_is_the_page_of_the_command(world: Path) -> None:
    page = vfm.draw_report("shapes", store=world / "store", out=world / "one.html")
    assert run_here("report", "shapes", "--store", world / "store", "--out", world / "two.html").code == 0
    assert page.read_text() == (world / "two.html").read_text()
    both = vfm.draw_report(["shapes@1", "shapes@2"], store=world / "store", out=world / "both.html")
    assert "shapes@1" in both.read_text()
    with pytest.raises(vfm.UserError, match=r"no run 'shape' in .*; runs: shapes@1, shapes@2"):
        vfm.draw_report("shape", store=world / "store")


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["recipes"], vfm.list_recipes),
        (["models", "vit_base_patch16_siglip"], lambda: vfm.list_models("vit_base_patch16_siglip")),
        (["runs", "--store", "store"], lambda: vfm.list_runs(store="store")),
    ],
    ids=["recipes", "models", "runs"],
)
def test_lists_are_those_of_the_command(
    world: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], call: Callable[[], Any]
) -> None:
    monkeypatch.chdir(world)
    printed = run_here(*words).out
    rows = call().table().to_pylist()
    assert rows  # core alone ships one recipe
    column = {"recipes": "recipe", "models": "name", "runs": "run"}[words[0]]
    assert [row[column] for row in rows if row[column] not in printed] == []


def test_an_empty_store_has_no_models(tmp_path: Path) -> None:
    assert vfm.list_models(store=tmp_path).table().column_names == ["folder", "kind", "model"]
    assert vfm.list_models(store=tmp_path).table().num_rows == 0
    with pytest.raises(vfm.UserError, match="no model of open_clip or timm has 'nothing' in its name"):
        vfm.list_models("nothing")
