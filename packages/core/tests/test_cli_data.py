"""`vfm data` on tars, folders, tables and saved datasets: what they have, what is skipped, and a sheet of pictures.

Of data without a usable sample, `vfm data`, `vfm embed` and a run name the user's file and say why.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cli_world import run_here
from eval_world import COLOURS, NAMES, labeled, png, pool
from range_server import serving
from vfm.base import UserError
from vfm.data.pairs.stages import Pairs
from vfm.data.samples.contact_sheet import GAP, SIDE, contact_sheet
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
    done = run_here("data", path if "://" in path else world / path, "--out", world / "sheet.png", *words)
    assert done.code == 0, done.err
    return done.out.splitlines()


def test_an_address_with_credentials_is_refused_without_showing_them(world: Path) -> None:
    with serving(world / "pool") as server:
        done = run_here("data", f"{server.url.replace('://', '://me:hunter2@')}/0.tar")
    assert done.code == 2
    assert "://me:***@" in done.err
    assert "VFM_CREDENTIALS" in done.err
    assert "hunter2" not in done.out + done.err


def test_a_tar_of_pairs_has_a_format_samples_and_a_sheet(world: Path) -> None:
    lines = shown(world, "pool/0.tar")
    assert f"in a recipe: {{kind: data.pairs, path: {world / 'pool/0.tar'}, name: NAME}}" in lines
    assert "num_samples: 7" in lines
    assert lines[-1] == f"first images: {world / 'sheet.png'}"
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
    assert shown(world, "pool")[:3] == ["data " + str(world / "pool"), "num_samples: 7", "languages: en, de"]


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


def tar(file: Path, names: list[str]) -> Path:
    """Write a tar of texts and pictures under any names."""
    with tarfile.open(file, "w") as made:
        for name in names:
            content = b"a word" if name.endswith("txt") else png(NAMES[0])
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return file


BESIDE = [f"{n}.{extension}" for n in range(10) for extension in ("{}", "txt")]
NAMES_WANTED = ("expected members KEY.EXTENSION",) * 3
UNKNOWN = "unknown_extension (10); the first is {}:"
NO_SAMPLES = {  # names of the members, and what a plan, `vfm data` and `vfm embed` say
    "dots": ([f"img.{name.format('png')}" for name in BESIDE], (f"{UNKNOWN}img.0.png",) * 3),
    "heic": (
        [name.format("heic") for name in BESIDE],
        (f"{UNKNOWN}0:", f"{UNKNOWN}0.heic", "10 unknown_extension; the first is {}:0 "),
    ),
    "captions": (
        BESIDE[1::2],
        ("missing_image (10); the first is {}:0", f"{UNKNOWN}0.txt", "10 missing_image; the first is {}:0 "),
    ),
    "absolute": (
        [f"/a/{name.format('png')}" for name in BESIDE],
        (*["unsafe_path (10); the first is {}:/a/0"] * 2, "10 unsafe_path; the first is {}:/a/0"),
    ),
    "hidden": ([f".{name.format('png')}" for name in BESIDE], NAMES_WANTED),
    "bare": ([str(n) for n in range(10)], NAMES_WANTED),
}


@pytest.mark.parametrize("case", NO_SAMPLES)
def test_a_tar_without_a_usable_sample_says_why(world: Path, tmp_path: Path, case: str) -> None:
    names, said = NO_SAMPLES[case]
    file = tar(tmp_path / "x.tar", names)
    plan, data, embed = (line.format(file) for line in said)
    with pytest.raises(UserError) as refused:
        Pairs(kind="data.pairs", name="p", path=str(file)).preflight(None)
    assert f"{file}: none of the first samples can be used: {plan}" in str(refused.value)
    assert f"no samples found in {file}: {data}" in run_here("data", file).err
    assert embed in run_here("embed", world / "encoder", file, "--out", tmp_path / "e.npy").err


def test_a_picture_of_an_extension_that_is_not_read_is_counted_as_such(tmp_path: Path) -> None:
    names = [name.format("png" if int(name[0]) < 5 else "avif") for name in BESIDE]
    done = run_here("data", tar(tmp_path / "x.tar", names), "--out", tmp_path / "s.png")
    assert f"skipped: 5 unknown_extension; the first is {tmp_path}/x.tar:5" in done.out.splitlines()


@pytest.mark.parametrize(
    ("name", "content", "why", "first"),
    [
        ("t.jsonl", b'{\n{"image": "../a.png", "caption": "x"}\n{\n', "broken_json (2), unsafe_path (1)", ": line 1"),
        ("a.csv", b"image,caption\na.csv,word\n", "unreadable_image (1)", ""),
        ("a.csv", "image,caption\na.csv,größer\n".encode("cp1252"), "unreadable_image (1)", ""),
    ],
)
def test_a_table_without_a_usable_sample_is_named(
    tmp_path: Path, name: str, content: bytes, why: str, first: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = run_here("data", tmp_path / name)
    assert done.code == 2
    assert f"no samples found in {tmp_path / name}: {why}; the first is " in done.err
    assert f"{name}{first}" in done.err


def test_embed_names_the_line_or_the_row_group_of_a_bad_row(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"image": "boat.png", "caption": "x"}\n{\n{\n')
    done = run_here("embed", world / "encoder", file, "--out", tmp_path / "e.npy")
    assert done.errors[-1].endswith(f"2 broken_json, 1 missing_image; the first is {tmp_path}/boat.png (missing_image)")
    (tmp_path / "boat.png").write_bytes(png(NAMES[0]))
    done = run_here("embed", world / "encoder", file, "--out", tmp_path / "e.npy")
    assert done.errors[-1].endswith(f": 2 broken_json; the first is {file}: line 2 (broken_json)")
    table = pa.table({"image": ["boat.png"] * 4, "caption": ["x", "y", "z", "w"]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2, compression="zstd", use_dictionary=False)
    whole = bytearray((tmp_path / "t.parquet").read_bytes())
    start = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(1).column(0).data_page_offset
    whole[start : start + 8] = b"\xff" * 8
    (tmp_path / "t.parquet").write_bytes(whole)
    done = run_here("embed", world / "encoder", tmp_path / "t.parquet", "--out", tmp_path / "e.npy")
    assert done.errors[-1].endswith(
        f": 2 unreadable_row; the first is {tmp_path}/t.parquet: row group 1 (unreadable_row)"
    )


def test_captions_that_cannot_be_read_are_told_although_the_pictures_can(world: Path) -> None:
    rows = "".join(f"flat/{name}.png,größer\n" for name in NAMES)
    (world / "codepage.csv").write_bytes(f"image,caption\n{rows}".encode("cp1252"))
    lines = shown(world, "codepage.csv")
    assert f"in a recipe: {{kind: data.images, path: {world / 'codepage.csv'}, name: NAME}}" in lines
    (told,) = [line for line in lines if line.startswith("not ")]
    assert told.startswith(
        f"not data.pairs: no samples found in {world / 'codepage.csv'}: wrong_encoding ({len(NAMES)}); the first is"
    )


def test_samples_that_are_only_counted_are_said_to_be(world: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(NAMES[0]), b"?"], "caption": ["x", "y"]}), tmp_path / "t.parquet")
    line = "not checked: 2 samples were only counted; a bad one is found when it is used"
    with serving(tmp_path) as server:
        assert line in shown(world, f"{server.url}/t.parquet")
    assert not any(one.startswith("not checked") for one in shown(world, f"{tmp_path}/t.parquet"))
    assert not any(line.startswith("not checked") for line in shown(world, "pool/0.tar"))
