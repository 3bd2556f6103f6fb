"""`vfm search` by words and by pictures, its sheet, and `vfm embed --texts`; a mistake is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cli_world import Outcome, run_here
from eval_world import COLOURS, NAMES, labeled, png, pool, tiny_clip
from vfm.api.search import kept_place
from vfm.data.samples.contact_sheet import GAP, SIDE
from vfm.eval.encode.embeddings import read_embeddings
from vfm.models import build_vision, load_clip, save_vision


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model, an encoder, labelled pictures of which the fourth is damaged, their index, and one as a file."""
    here = tmp_path_factory.mktemp("world")
    tiny_clip(here / "clip", 0)
    save_vision(build_vision("vit_pico_patch8_32", seed=0), here / "encoder")
    labeled(here / "labeled", 7, broken=[3])
    pool(here / "pool")
    (here / "other").mkdir()
    (here / "other/a.png").write_bytes(png("red"))
    for name, number in (("first", 0), ("last", 6)):
        (here / f"{name}.png").write_bytes(png(NAMES[number], number + 1))
    for model in ("clip", "encoder"):
        words = ("embed", here / model, here / "labeled", "--out", here / f"{model}.parquet")
        assert run_here(*words, "--max-bad-fraction", "0.2").code == 0
    pq.write_table(pa.table({"image": ["a.png"]}), here / "no_index.parquet")
    absolute = f"filepath,title\n{here / 'other/a.png'},red\n"
    (here / "absolute.csv").write_text(absolute)
    options = ("--out", here / "absolute.parquet", "--data-option", "image_root=/")
    assert run_here("embed", here / "clip", here / "absolute.csv", *options).code == 0
    (here / "texts.txt").write_text("a red boat\na blue boat\nein Boot\n")
    return here


def search(world: Path, *words: str | Path, index: str = "clip.parquet") -> Outcome:
    return run_here("search", *words, "--index", world / index, "--out", world / "found.png")


def tile(world: Path, column: int, row: int = 0) -> np.ndarray:
    """The middle of a picture of the sheet."""
    sheet = np.asarray(Image.open(world / "found.png")).astype(int)
    height = sheet.shape[0] // 2 if sheet.shape[0] > 2 * SIDE else 0
    return sheet[GAP + row * height + SIDE // 2, GAP + column * (SIDE + GAP) + SIDE // 2]


@pytest.mark.parametrize("model", ["clip", "encoder"])
def test_a_picture_finds_itself_behind_a_damaged_one_and_is_drawn(world: Path, model: str) -> None:
    done = search(world, world / "first.png", world / "last.png", "--top", "2", index=f"{model}.parquet")
    assert done.code == 0, done.err
    best = [line for line in done.out.splitlines() if line.startswith("   1.000")]
    assert best == [f"   1.000  0000  {NAMES[0]}", f"   1.000  0006  {NAMES[6]}"]
    for row, number in enumerate((0, 6)):
        for column in (0, 1):  # the query, and what was found
            assert np.abs(tile(world, column, row) - COLOURS[NAMES[number]]).max() < 70


def test_words_are_searched_as_the_model_encodes_them(world: Path) -> None:
    done = search(world, "it is red", "--top", "6")
    known = read_embeddings(world / "clip.parquet")
    scores = (load_clip(world / "clip").encode_texts(["it is red"]) @ known.vectors.T)[0]
    order = scores.argsort(descending=True).tolist()
    assert [line.split()[1] for line in done.out.splitlines()[1:-1]] == [known.keys[row] for row in order]
    assert tile(world, 0).tolist() == [220, 220, 220]


def test_embed_writes_a_file_of_texts_that_can_be_searched(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "texts.parquet"
    assert run_here("embed", world / "clip", "--texts", world / "texts.txt", "--out", out).code == 0
    known = read_embeddings(out)
    assert known.keys == ["a red boat", "a blue boat", "ein Boot"]
    assert torch.equal(known.vectors, load_clip(world / "clip").encode_texts(known.keys))
    done = run_here("search", "a blue boat", "--index", out, "--top", "1")
    assert done.out.splitlines()[1] == "   1.000  a blue boat"
    assert "give --data to draw them" in done.err


def test_an_index_keeps_where_its_pictures_are_without_credentials(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    assert read_embeddings(world / "clip.parquet").data == str(world / "labeled")
    assert kept_place("a.tar::b/{00..09}.tar") == f"{world}/a.tar::{world}/b/{{00..09}}.tar"
    assert kept_place("https://me:secret@host/a.tar") == "https://me:***@host/a.tar"
    assert kept_place("") == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["search", "red " * 100, "--index", "encoder.parquet"], "has no text tower to search by words"),
        (["search", "red", "--index", "none.parquet"], "none.parquet: no such file; make one with vfm embed"),
        (["search", "red", "--index", "encoder.parquet"], "has no text tower to search by words"),
        (["search", "", "--index", "clip.parquet"], "expected words or an image file to search for, got ''"),
        (["search", "none.jpg", "--index", "clip.parquet"], "none.jpg: no such image"),
        (["search", "red", "--index", "texts.txt"], "texts.txt: expected .parquet or .npy, got .txt"),
        (["search", "red", "--index", "clip.parquet", "--out", "a.gif"], "--out a.gif: expected a .png file, got .gif"),
        (["search", "red", "--index", "clip.parquet", "--data", "other"], "no sample has the key"),
        (["search", "red", "--index", "clip.parquet", "--model", "encoder"], "has no text tower"),
        (["search", "red", "--index", "no_index.parquet"], "expected the columns key, text, embedding of vfm"),
        (["search", "red", "--index", "absolute.parquet"], "unsafe path; paths must be relative to image_root"),
        (["embed", "clip", "pool", "--texts", "texts.txt", "--out", "a.parquet"], "give either DATA"),
        (["embed", "clip", "--out", "a.parquet"], "give either DATA"),
        (["embed", "encoder", "--texts", "texts.txt", "--out", "a.parquet"], "it has no text tower"),
    ],
)
def test_mistakes_are_a_line(world: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str) -> None:
    monkeypatch.chdir(world)
    done = run_here(*words)
    assert done.code == 2
    assert line in done.errors[-1]
    assert not (world / "a.parquet").exists()
