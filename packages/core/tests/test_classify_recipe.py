"""`vfm classify`: the recipe that it writes, the classes of both sets, and its mistakes in a line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_world import run_here
from peer_files import NAMES, class_folders, hub_parquet, jpeg, table, tar, write
from vfm.data.labeled.stages import Labeled
from vfm.data.layouts.folder import class_folders as listed

CLIP = "ViT-B-32,none"


def written(here: Path, *words: str | Path) -> list[dict[str, Any]]:
    """Write a recipe, and read its stages."""
    recipe = here / "written.yaml"
    done = run_here("classify", *words, "--model", CLIP, "--recipe", recipe, "--dry-run", "--quiet")
    assert done.code == 0, done.err
    stages: list[dict[str, Any]] = yaml.safe_load(recipe.read_text())["stages"]
    return stages


def test_splits_are_found_next_to_each_other(tmp_path: Path) -> None:
    root = class_folders(tmp_path, "train", "val")
    model, train, val, accuracy = written(tmp_path, root)
    assert model == {"kind": "models.clip", "name": "ViT-B-32-none", "source": "ViT-B-32", "pretrained": "none"}
    assert [part["path"] for part in (train, val)] == [f"{root}/train", f"{root}/val"]
    assert accuracy["kind"] == "eval.linear_probe"
    assert {key: accuracy[key] for key in ("models", "train", "data")} == {
        "models": ["ViT-B-32-none"], "train": "train", "data": "val"
    }  # fmt: skip
    assert written(tmp_path, root / "train", "--val", root / "val", "--method", "knn")[3]["kind"] == "eval.knn"


def test_numbers_without_names_are_their_own_names(tmp_path: Path) -> None:
    train = tar(tmp_path / "a.tar", [{"jpg": jpeg(n), "cls": str(n % 4)} for n in range(8)])
    val = table(tmp_path / "b.csv", ["image", "label"], [["x.jpg", 5]])
    for dataset in written(tmp_path, train, "--val", val)[1:3]:
        assert dataset["class_names"] == ["0", "1", "2", "3", "4", "5"]


def test_a_column_with_the_names_of_the_numbers_is_used(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path, kind="names")
    _, train, _, _ = written(tmp_path, path, "--val", path)
    assert train["label_key"] == "names"
    assert "class_names" not in train


def test_a_validation_set_may_lack_classes_and_keeps_their_numbers(tmp_path: Path) -> None:
    root = class_folders(tmp_path, "train", "val")
    shutil.rmtree(root / "val" / "n01")
    stages = written(tmp_path, root)
    assert [stage["class_names"] for stage in stages[1:3]] == [["n00", "n01", "n02", "n03"]] * 2
    labels = {
        entry.image.split("/")[-2]: entry.label for entry in listed(str(root / "val"), stages[2]["class_names"])[1]
    }
    assert labels == {"n00": 0, "n02": 2, "n03": 3}
    Labeled(name="val", **{key: value for key, value in stages[2].items() if key != "name"}).preflight(None)


def test_names_that_replace_those_of_folders_are_still_in_their_order(tmp_path: Path) -> None:
    entries = list(listed(str(class_folders(tmp_path)), NAMES)[1])
    assert {entry.image.split("/")[-2]: entry.label for entry in entries} == {"n00": 0, "n01": 1, "n02": 2, "n03": 3}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["imagenet/train"], "imagenet/train: has no val or test; give the images to evaluate on: --val PATH"),
        (["imagenet", "--method", "zero-shot"], "trains nothing: vfm eval MODEL --data imagenet --tasks zero_shot"),
        (["imagenet", "--method", "prob"], "--method: expected one of probe, knn, finetune, got 'prob'; did you mean"),
        (["imagenet", "--method", "finetune"], "--method finetune"),  # core alone lacks its stage
        (["imagenet/train", "--val", "other"], "1 of its classes are not in the training images, such as 'n09'"),
        (["pairs.csv", "--val", "pairs.csv"], "pairs.csv: expected labelled images"),
    ],
)
def test_mistakes_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str) -> None:
    class_folders(tmp_path, "train", "val")
    write(tmp_path / "other/n09/1.jpg", jpeg(1))
    table(tmp_path / "pairs.csv", ["image", "caption"], [["other/n09/1.jpg", "a red boat"]])
    monkeypatch.chdir(tmp_path)
    done = run_here("classify", *words, "--model", CLIP, "--dry-run")
    assert done.code == 2
    assert line in done.err
    assert len(done.errors) == 1
