"""Options of the data in `vfm data`, `embed`, `search` and `eval`, and the error of absolute paths with its cure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cli_world import run_here
from eval_world import NAMES, png, tiny_clip
from vfm.data import write_tar
from vfm.eval.encode.embeddings import read_embeddings

ROOT = ("--data-option", "image_root=/")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a CLIP model, open_clip's csv with absolute paths, and a tar with captions in txt and others in json."""
    world = tmp_path_factory.mktemp("options")
    tiny_clip(world / "clip", 0)
    (world / "images").mkdir()
    lines = ["filepath\ttitle"]
    for name in NAMES:
        (world / "images" / f"{name}.png").write_bytes(png(name))
        lines.append(f"{world}/images/{name}.png\ta {name} thing")
    (world / "train.csv").write_text("\n".join(lines) + "\n")
    rows = []
    for name in NAMES:
        record = {"en": f"the {name}", "caption": f"a {name}", "width": "64", "license": "cc"}
        members = {"png": png(name), "txt": f"a {name}".encode(), "json": json.dumps(record).encode()}
        rows.append((name, members))
    write_tar(world / "both.tar", rows)
    return world


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


@pytest.mark.parametrize("command", [("data",), ("embed", "clip", "--out", "x.npy")], ids=["data", "embed"])
def test_absolute_paths_are_an_error_with_its_cure(here: Path, command: tuple[str, ...]) -> None:
    done = run_here(*command, "train.csv")
    assert done.code == 2
    assert "unsafe_path" in done.errors[-1]
    assert done.errors[-1].endswith("absolute ones and addresses need image_root: / (--data-option image_root=/)")


def test_the_cure_works_in_every_command(here: Path) -> None:
    done = run_here("data", "train.csv", *ROOT)
    assert done.code == 0, done.err
    assert f"num_samples: {len(NAMES)}" in done.out
    assert run_here("embed", "clip", "train.csv", *ROOT, "--out", "index.parquet").code == 0
    assert read_embeddings(here / "index.parquet").texts == [f"a {name} thing" for name in NAMES]
    found = run_here("search", "red", "--index", "index.parquet", *ROOT)
    assert found.code == 0, found.err
    done = run_here("eval", "clip", "--data", "train.csv", *ROOT, "--dry-run")
    stages = {stage["name"]: stage for stage in yaml.safe_load(done.out)["stages"]}
    assert stages["train-csv"]["image_root"] == "/"


def test_texts_choose_the_column_of_the_captions(here: Path) -> None:
    done = run_here("embed", "clip", "both.tar", "--data-option", "texts.en=json.en", "--out", "en.parquet")
    assert done.code == 0, done.err
    assert read_embeddings(here / "en.parquet").texts == [f"the {name}" for name in NAMES]


def test_a_tar_with_two_captions_is_not_scored_before_one_is_chosen(here: Path) -> None:
    done = run_here("eval", "clip", "--data", "both.tar", "--dry-run")
    assert done.code == 2
    choice = "choose --data-option texts.en=txt or --data-option texts.en=json.en"
    assert done.errors == [f"error: both.tar: captions in txt differ from json.en; {choice}"]
    done = run_here("eval", "clip", "--data", "both.tar", "--data-option", "texts.en=json.en", "--dry-run")
    stages = {stage["name"]: stage for stage in yaml.safe_load(done.out)["stages"]}
    assert stages["both"]["texts"] == {"en": "json.en"}
    assert "text that is not read: json.en" in run_here("data", "both.tar").out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("data", "train.csv", "--data-option", "image_rot=/"), "did you mean 'image_root'"),
        (("data", "train.csv", "--data-option", "image_root"), "expected FIELD=VALUE"),
        (("embed", "clip", "train.csv", "--out", "y.npy", "--data-option", "split=a"), "expected one of format, "),
        (("embed", "clip", "train.csv", "--out", "y.npy", "--data-option", "texts=3"), "data-option texts: "),
        (("eval", "clip", "--suite", "small", *ROOT), "got a suite"),
    ],
)
def test_a_wrong_option_is_one_line(here: Path, words: tuple[str, ...], line: str) -> None:
    done = run_here(*words)
    assert done.code == 2
    assert len(done.errors) == 1, done.err
    assert line in done.errors[0]
