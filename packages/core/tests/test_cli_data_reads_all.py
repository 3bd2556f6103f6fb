"""`vfm data` reads every sample, also of files with a known count, and names the files of the bad ones."""

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
from eval_world import NAMES, png
from vfm.data import DatasetSpec, Shard, Source
from vfm.data.indexing.examination import Examination
from vfm.data.pairs.stages import Pairs
from vfm.flow.requests import dataset_summary
from vfm.interfaces import Context

NUM = 20
NO_CAPTION, NO_IMAGE = (1, 4, 7, 10, 13), (2, 19)


def shown(path: Path, *words: str | Path) -> list[str]:
    done = run_here("data", path, "--out", path.parent / "sheet.png", *words)
    assert done.code == 0, done.err
    return done.out.splitlines()


def columns() -> dict[str, list[bytes] | list[str | None]]:
    images = [b"hello" if number in NO_IMAGE else png(NAMES[0]) for number in range(NUM)]
    return {"image": images, "caption": [None if number in NO_CAPTION else f"boat {number}" for number in range(NUM)]}


def parquet(folder: Path) -> Path:
    pq.write_table(pa.table(columns()), folder / "t.parquet")
    return folder / "t.parquet"


def arrow(folder: Path) -> Path:
    """Write a dataset as `save_to_disk` of Hugging Face's datasets does."""
    saved, table = folder / "saved", pa.table(columns())
    saved.mkdir()
    with (
        pa.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (saved / "dataset_info.json").write_text("{}")
    return saved


def counted_tar(folder: Path) -> Path:
    """Write a tar beside the statistics of img2dataset, which count the bad samples as successes."""
    members = folder / "members"
    members.mkdir()
    found = columns()
    for number, (image, caption) in enumerate(zip(found["image"], found["caption"], strict=True)):
        (members / f"{number:05d}.png").write_bytes(image)
        if caption:
            (members / f"{number:05d}.txt").write_text(caption)
    with tarfile.open(folder / "00000.tar", "w") as out:
        for file in sorted(members.iterdir()):
            out.add(file, file.name)
    (folder / "00000_stats.json").write_text(json.dumps({"successes": NUM}))
    return folder / "00000.tar"


@pytest.mark.parametrize("write", [parquet, arrow, counted_tar])
def test_bad_samples_of_files_with_a_known_count_are_skipped(tmp_path: Path, write) -> None:
    path = write(tmp_path)
    lines = shown(path)
    assert f"num_samples: {NUM - len(NO_CAPTION) - len(NO_IMAGE)}" in lines
    for reason, count in (("missing_caption", len(NO_CAPTION)), ("unreadable_image", len(NO_IMAGE))):
        assert any(line.startswith(f"skipped: {count} {reason}; the first is ") for line in lines)
    assert not any(line.startswith("not checked") for line in lines)


@pytest.mark.parametrize("write", [parquet, counted_tar])
def test_verify_all_leaves_them_out_of_a_training(tmp_path: Path, write) -> None:
    stage = Pairs(kind="data.pairs", name="p", path=str(write(tmp_path)), verify="all", max_bad_fraction=1)
    stage.run(Context("p", tmp_path / "a", tmp_path / "w", {}))
    source = Source(tmp_path / "a")
    good = [number for number in range(NUM) if number not in (*NO_CAPTION, *NO_IMAGE)]
    assert [source[number].texts["en"] for number in range(len(source))] == [[f"boat {number}"] for number in good]


@pytest.mark.parametrize("limit", [1, 2, 6, 12, 13, 14])
def test_with_a_limit_no_more_is_read_and_nothing_else_is_skipped(tmp_path: Path, limit: int) -> None:
    path, bad = parquet(tmp_path), sorted((*NO_CAPTION, *NO_IMAGE))
    good = [number for number in range(NUM) if number not in bad]
    lines = shown(path, "--limit", str(limit))
    assert f"num_samples: {min(limit, len(good))}" in lines
    skipped = sum(int(line.split()[1]) for line in lines if line.startswith("skipped"))
    assert skipped == (len(bad) if limit >= len(good) else sum(number < good[limit - 1] for number in bad))
    examine = Examination(DatasetSpec(texts={"en": "caption"}), "all", limit)
    found = examine((Shard.of(path, NUM, format="parquet"), True))
    end = good[limit] if limit < len(good) else NUM  # one good sample more than the limit shows that the file has more
    assert [row for row, _, _ in found.bad] == [number for number in bad if number < end]


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl"])
def test_captions_alone_are_printed_and_those_that_are_missing_are_skipped(tmp_path: Path, name: str) -> None:
    captions = [None if number in NO_CAPTION else f"boat {number}" for number in range(NUM)]
    if name == "c.parquet":
        pq.write_table(pa.table({"caption": captions}), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps({"caption": one}) + "\n" for one in captions))
    lines = shown(tmp_path / name)
    assert any(line.startswith(f"skipped: {len(NO_CAPTION)} missing_caption; the first is ") for line in lines)
    printed = [line.removeprefix("caption: ") for line in lines if line.startswith("caption: ")]
    assert printed == [one for one in captions if one][:10]
    assert f"num_samples: {NUM - len(NO_CAPTION)}" in lines


def test_the_files_of_a_damaged_picture_and_of_an_unreadable_caption_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "d" / "broken"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).bytes(500)
    for name, image, caption in (
        ("aaa", noise, b"a boat"),
        ("bad", png(NAMES[0]), b"gr\xf6\xdfer"),
        ("c", png(NAMES[0]), b"x"),
    ):
        (folder / f"{name}.png").write_bytes(image)
        (folder / f"{name}.txt").write_bytes(caption)
    lines = shown(tmp_path / "d", "--kind", "data.pairs")
    assert f"skipped: 1 unreadable_image; the first is {folder}/aaa.png" in lines
    assert f"skipped: 1 wrong_encoding; the first is {folder}/bad.txt" in lines


def test_columns_of_text_that_are_not_read_are_named(tmp_path: Path) -> None:
    table = {"img": [png(NAMES[0])], "sentence": ["a boat"], "width": [3], "url": ["http://x"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    told = (
        "text that is not read: sentence; to read it as captions: texts: {en: sentence} in data.pairs;"
        " for reports and weights: columns: [sentence]"
    )
    assert told in shown(tmp_path / "t.parquet")
    (tmp_path / "boat.png").write_bytes(png(NAMES[0]))
    (tmp_path / "t.csv").write_text("image,caption,source,score\nboat.png,a boat,web,0.5\n")
    assert any(line.startswith("text that is not read: source;") for line in shown(tmp_path / "t.csv"))
    (tmp_path / "u.csv").write_text("image,caption\nboat.png,a boat\n")
    assert not any(line.startswith("text that") for line in shown(tmp_path / "u.csv"))


def cut_images(folder: Path) -> Path:
    """Write 12 JPEGs with captions, of which four end after half of their bytes."""
    folder.mkdir()
    for number in range(12):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, "jpeg")
        data = stream.getvalue()
        (folder / f"{number:02d}.jpg").write_bytes(data[: len(data) // 2] if number % 3 == 0 else data)
        (folder / f"{number:02d}.txt").write_text(f"image {number}")
    return folder


def test_images_that_are_cut_off_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(cut_images(tmp_path / "cut"))
    assert f"skipped: 4 unreadable_image; the first is {tmp_path}/cut/00.jpg" in lines
    monkeypatch.setattr(dataset_summary, "DECODED_BYTES", 100)
    lines = shown(tmp_path / "cut")
    assert not [line for line in lines if line.startswith("skipped")]
    assert any(line.startswith("not decoded: the files are large") for line in lines)
