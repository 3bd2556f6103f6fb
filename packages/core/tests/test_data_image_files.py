"""`data.images`: a folder, tars, a list or Parquet of images alone is a dataset that trainings and `embed` read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_samples import context, draw_sample, encoded
from vfm.api.inputs import open_images
from vfm.base import UserError
from vfm.data import DatasetSpec, ImageTransform, Sample, SampleDraw, TrainingData, open_dataset, write_tar
from vfm.data.indexing.examination import Examination, examine_all
from vfm.data.pairs.stages import Images
from vfm.data.tables.image_list import ImageEntry, write_image_lists
from vfm.interfaces import ImageDataset, PairDataset
from vfm.storage import files

NUM = 6


def flat(folder: Path) -> Path:
    folder.mkdir()
    for n in range(NUM):
        (folder / f"{n}.png").write_bytes(encoded(n))
    return folder


def nested(folder: Path) -> Path:
    for n in range(NUM):
        place = folder / f"{n // 2}" / "deep"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{n}.png").write_bytes(encoded(n))
    (folder / "readme.txt").write_text("about")
    return folder


def tar(folder: Path) -> Path:
    folder.mkdir()
    write_tar(folder / "x.tar", [(f"{n}", {"png": encoded(n)}) for n in range(NUM)])
    return folder / "x.tar"


def names(folder: Path) -> list[str]:
    flat(folder)
    return [f"{n}.png" for n in range(NUM)]


def txt_list(folder: Path) -> Path:
    listed = names(folder)
    (folder / "list.txt").write_bytes("\r\n".join([*listed, ""]).encode("utf-8-sig"))
    return folder / "list.txt"


def csv_list(folder: Path) -> Path:
    listed = names(folder)
    (folder / "list.csv").write_text("\n".join(listed))
    return folder / "list.csv"


def csv_with_header(folder: Path) -> Path:
    listed = names(folder)
    (folder / "list.csv").write_text("\n".join([",path,width", *(f"{n},{name},24" for n, name in enumerate(listed))]))
    return folder / "list.csv"


def parquet_of_bytes(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"image": [encoded(n) for n in range(NUM)]}), folder / "x.parquet", row_group_size=2)
    return folder


def parquet_of_paths(folder: Path) -> Path:
    pq.write_table(pa.table({"path": names(folder)}), folder / "x.parquet")
    return folder / "x.parquet"


SHAPES = [flat, nested, tar, txt_list, csv_list, csv_with_header, parquet_of_bytes, parquet_of_paths]


def pixels(sample: Sample, draw: SampleDraw) -> torch.Tensor:
    return ImageTransform(8)(sample.image, draw.seed)


def stage(path: object, **fields) -> Images:
    return Images(kind="data.images", name="plain", path=str(path), **fields)


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
def test_images_alone_are_indexed_and_read_by_a_training(tmp_path, make):
    config = stage(make(tmp_path / "data"))
    config.preflight(None)
    ctx = context(tmp_path / "artifact")
    dataset = config.run(ctx)
    assert type(dataset) is ImageDataset is config.makes
    assert not isinstance(dataset, PairDataset)
    assert dataset.num_samples == NUM
    assert not ctx.bad
    loaded = ImageDataset.load(dataset.path)
    source = open_dataset(loaded)
    assert [source[n].image for n in range(NUM)] == [encoded(n) for n in range(NUM)]
    assert len(set(source.keys)) == NUM
    (batches,) = TrainingData(source, pixels, global_batch_size=NUM).steps(0, 1)
    assert batches[0].inputs.shape == (NUM, 3, 8, 8)
    assert len(open_images(str(dataset.path), tmp_path / "unused")) == NUM, "as `vfm embed` opens it"


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
def test_embed_takes_the_same_paths(tmp_path, make):
    source = open_images(str(make(tmp_path / "data")), tmp_path / "index")
    assert [source[n].image for n in range(NUM)] == [encoded(n) for n in range(NUM)]


def test_two_images_of_one_name_in_two_formats_are_two_images(tmp_path):
    folder = flat(tmp_path / "data")
    draw_sample(9).save(folder / "0.jpg")
    source = open_images(str(folder), tmp_path / "index")
    assert source.keys[:2] == ["0.jpg", "0.png"]


def test_absolute_paths_need_a_root(tmp_path):
    listed = [f"{tmp_path}/data/{name}" for name in names(tmp_path / "data")]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    with pytest.raises(UserError, match=r"unsafe_path; paths must be relative to image_root; absolute ones .*root: /"):
        stage(tmp_path / "list.txt").preflight(None)
    dataset = stage(tmp_path / "list.txt", image_root="/").run(context(tmp_path / "artifact"))
    assert dataset.num_samples == NUM


def test_folder_without_images_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images found"):
        stage(tmp_path / "empty").preflight(None)


@pytest.mark.parametrize("verify", ["all", "decode"])
def test_an_image_of_many_rows_is_opened_once(tmp_path, monkeypatch, verify):
    paths = [str(tmp_path / f"{n}.png") for n in range(5)]
    for n, path in enumerate(paths[:3]):
        Path(path).write_bytes(encoded(n))
    Path(paths[3]).write_bytes(b"no image")  # and the last is missing
    entries = []
    for n in range(20_050):  # three shards
        texts = {"en": [] if n % 50 == 1 else [f"caption {n}"]}
        entries.append(ImageEntry(f"{n}", paths[n % 3 if n % 100 else 3 + n // 100 % 2], texts))
    opened = []
    read_bytes = files.read_bytes
    monkeypatch.setattr(files, "read_bytes", lambda path, *ends: opened.append(path) or read_bytes(path, *ends))
    spec = DatasetSpec(texts={"en": "caption"})
    examine = Examination(spec, verify)
    bad = []
    for number, shard in enumerate(write_image_lists(tmp_path / "lists", entries, spec)):
        bad += [
            (number * 10_000 + row, reason)
            for row, reason, _ in examine((shard, True) if number else (shard, False)).bad
        ]
    assert [opened.count(path) for path in paths[:3]] == [1, 1, 1]
    expected = []
    for n in range(20_050):
        if n % 50 == 1:
            expected.append((n, "missing_caption"))
        elif n % 100 == 0:
            expected.append((n, "missing_image" if n // 100 % 2 else "unreadable_image"))
    assert bad == expected


def test_processes_examine_the_same_rows(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    entries = [ImageEntry(f"{n}", str(tmp_path / f"{n * 7 % 5}.png")) for n in range(20_010)]  # 4.png is missing
    spec = DatasetSpec()
    shards = [(shard, False) for shard in write_image_lists(tmp_path / "lists", entries, spec)]
    alone, together = (list(examine_all(Examination(spec, "all"), shards, workers)) for workers in (0, 2))
    assert [examined.bad for examined in alone] == [examined.bad for examined in together]
    assert sum(len(examined.bad) for examined in alone) == 20_010 // 5
