"""`vfm models` and `vfm recipes`: every model of a store and of the libraries, every shipped recipe."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from cli_world import run_here
from vfm.flow.recipe.recipe_source import about_recipe
from vfm.flow.recipe.shipped import PURPOSES, shipped_files
from vfm.models import build_vision, save_vision
from vfm.models.catalogue import named_models


def test_every_shipped_recipe_is_listed_with_a_sentence() -> None:
    recipes = shipped_files("recipes")
    about = {name: about_recipe(file) for name, file in recipes.items()}
    assert {name: text for name, text in about.items() if not 20 < len(text) < 250 or "\n" in text} == {}
    assert {file.parent.name for file in recipes.values()} <= set(PURPOSES)
    listed = run_here("recipes").out
    assert [name for name in recipes if f" {name} " not in listed] == []


def test_models_of_the_libraries_are_found_by_a_part_of_their_name() -> None:
    rows = named_models("vit-b-32-quick")
    assert [row[:2] for row in rows] == [("ViT-B-32-quickgelu", "open_clip")]
    assert rows[0][2].split(", ") == open_clip.list_pretrained_tags_by_model("ViT-B-32-quickgelu")
    own = {(name, library) for name, library, _ in named_models("pico")}
    assert {("ViT-Pico-8-32", "open_clip"), ("vit_pico_patch8_32", "timm")} <= own


def test_models_of_a_store_are_listed_by_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no models in store" in run_here("models").out
    save_vision(build_vision("vit_pico_patch8_32", seed=0), Path("given"))
    Path("r.yaml").write_text(
        "stages:\n  - {kind: shapes.pool, name: pool, num_samples: 4}\n"
        "  - {kind: models.vision, name: encoder, source: given}\n"
    )
    assert run_here("run", "r.yaml").code == 0
    lines = run_here("models").out.splitlines()
    (line,) = [line for line in lines if "VisionCheckpoint" in line]
    assert line.split() == ["store/runs/r@1/artifacts/encoder", "VisionCheckpoint", "vit_pico_patch8_32,", "32", "px"]


def test_an_unknown_name_is_a_line() -> None:
    done = run_here("models", "no-such-model")
    assert (done.code, done.errors) == (2, ["error: no model of open_clip or timm has 'no-such-model' in its name"])
