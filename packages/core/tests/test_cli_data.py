"""`vfm data` on tars, folders, tables and saved datasets: what they have, what is skipped, and a sheet of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_world import run_here
from eval_world import COLOURS, NAMES, labeled, png, pool
from vfm.data.contact_sheet import GAP, SIDE, contact_sheet
from vfm.models import build_vision, save_vision


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of pairs, labelled pictures of which two are damaged, class folders, a flat folder, and captions."""
    here = tmp_path_factory.mktemp("world")
    pool(here / "pool")
    labeled(here / "labeled", 14, broken=[3, 5])
    for name in NAMES:
        for folder in (here / "classes" / name, here / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.png").write_bytes(png(name))
    save_vision(build_vision("vit_pico_patch8_32", seed=0), here / "encoder")
    (here / "captions.csv").write_text("caption\na red boat\na blue boat\n")
    (here / "captions.txt").write_text("a red boat\na blue boat\n")
    images = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate(NAMES)]
    captions = [{"image_id": n, "caption": name} for n, name in enumerate(NAMES[1:], start=1)]
    (here / "captions_flat.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return here


def shown(world: Path, path: str, *words: str | Path) -> list[str]:
    done = run_here("data", world / path, "--out", world / "sheet.png", *words)
    assert done.code == 0, done.err
    return done.out.splitlines()


def test_a_tar_of_pairs_has_a_format_samples_and_a_sheet(world: Path) -> None:
    lines = shown(world, "pool/0.tar")
    assert f"in a recipe: {{kind: data.pairs, path: {world / 'pool/0.tar'}, name: NAME}}" in lines
    assert "num_samples: 7" in lines
    assert lines[-1] == f"first pictures: {world / 'sheet.png'}"
    sheet = np.asarray(Image.open(world / "sheet.png"))
    middle = sheet[GAP + SIDE // 2, GAP + SIDE // 2]
    assert np.abs(middle.astype(int) - COLOURS[NAMES[0]]).max() < 20, "the first picture is where it belongs"


def test_what_is_skipped_is_counted_by_reason_with_the_first_place(world: Path) -> None:
    lines = shown(world, "labeled/0.tar")
    assert "num_samples: 12" in lines
    (skipped,) = [line for line in lines if line.startswith("skipped")]
    assert skipped.startswith("skipped: 2 unreadable_image; the first is ")
    assert skipped.endswith("0003")


def test_cocos_captions_are_shown_with_what_is_skipped(world: Path) -> None:
    lines = shown(world, "captions_flat.json")
    assert f"num_samples: {len(NAMES) - 1}" in lines
    assert f"skipped: 1 missing_caption; the first is {world / 'flat' / NAMES[0]}.png" in lines


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("classes", "data.labeled"),
        ("flat", "data.images"),
        ("captions.csv", "data.pairs"),
        ("captions.txt", "data.pairs"),
    ],
)
def test_folders_and_tables_are_recognised(world: Path, path: str, kind: str) -> None:
    assert any(line.startswith(f"in a recipe: {{kind: {kind}, ") for line in shown(world, path))


def test_a_kind_can_be_chosen_and_the_samples_limited(world: Path) -> None:
    lines = shown(world, "pool/0.tar", "--kind", "data.images", "--limit", "3")
    assert any("kind: data.images" in line for line in lines)
    assert "num_samples: 3" in lines


def test_a_folder_with_brackets_in_its_name_is_shown_whole(world: Path) -> None:
    (world / "flat[old]").symlink_to(world / "flat")
    assert shown(world, "flat[old]")[0] == f"data {world / 'flat[old]'}"


def test_a_saved_dataset_is_not_imported_again(world: Path) -> None:
    assert shown(world, "pool") == ["data " + str(world / "pool"), "num_samples: 7", "languages: en, de"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["encoder"], "encoder: expected a dataset, got a VisionCheckpoint"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["captions.csv", "--kind", "data.pear"], "--kind: 'data.pear' is not a kind of dataset; did you mean"),
        (["captions.csv", "--out", "a.jpg"], "--out a.jpg: expected a .png file, got .jpg"),
        (["captions.csv", "--kind", "data.digits"], "--kind data.digits: path: unknown key"),
        (["flat", "--kind", "data.choices", "--limit", "3"], "--limit: data.choices reads all samples"),
    ],
)
def test_mistakes_are_a_line(world: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str) -> None:
    monkeypatch.chdir(world)
    done = run_here("data", *words)
    assert done.code == 2
    assert line in done.err


@pytest.mark.parametrize("count", [1, 4, 5, 6, 11])
def test_a_sheet_has_a_place_for_every_picture(count: int) -> None:
    pictures = [(Image.new("L", (30 + n, 900), 40), "word " * 99) for n in range(count)]
    sheet = np.asarray(contact_sheet(pictures).convert("L"))
    columns = min(count, 5)
    assert sheet.shape[1] == columns * (SIDE + GAP) + GAP
    for number in range(count):
        left = GAP + number % columns * (SIDE + GAP)
        height = (sheet.shape[0] - GAP) // -(-count // columns)
        assert sheet[GAP + number // columns * height + SIDE // 2, left + SIDE // 2] == 40
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
