"""Every format is read back unchanged, through the stage that indexes it and the Source that reads it."""

import base64
import csv
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import context, encoded, json_member, make_pool, members
from vfm.base import UserError
from vfm.data import (
    BadSample,
    DatasetSpec,
    Sample,
    ShardReader,
    Source,
    open_dataset,
    uid_of,
    write_tar,
)
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import load_panels

SHARED = Path(__file__).parents[4] / "shared" / "data"


def index(tmp_path, path, **fields) -> Source:
    stage = Pairs(kind="data.pairs", name="pool", path=path, **fields)
    assert list(stage.sources())
    stage.preflight(None)
    return open_dataset(stage.run(context(tmp_path / "artifact")))


def contents(source: Source) -> list[tuple[bytes, dict]]:
    return [(source[i].image, source[i].texts) for i in range(len(source))]


EXPECTED = [(encoded(n), {"en": [f"caption {n}"]}) for n in range(6)]


def test_tars_by_list_brace_pattern_and_folder_are_the_same_pool(tmp_path):
    make_pool(tmp_path / "t", [4, 2])
    for number, path in enumerate([f"{tmp_path}/t/{{000..001}}.tar", [f"{tmp_path}/t/*.tar"], f"{tmp_path}/t"]):
        source = index(tmp_path / str(number), path)
        assert contents(source) == EXPECTED
        assert source.shard_sizes.tolist() == [4, 2]
        assert source.keys == [f"{n:06d}" for n in range(6)]


def test_several_captions_in_several_languages_come_from_json(tmp_path):
    rows = [
        ("a", members(0, json=json_member(en=["one", " two "], meta={"de": "eins"}, uid="u-1"))),
        ("b", members(1, json=json_member(en=[], meta={"de": ["zwei", ""]}))),
    ]
    write_tar(tmp_path / "x.tar", rows)
    source = index(tmp_path, f"{tmp_path}/x.tar", texts={"en": "json.en", "de": "json.meta.de"})
    assert [source[i].texts for i in range(2)] == [{"en": ["one", "two"], "de": ["eins"]}, {"de": ["zwei"]}]
    assert [source[i].uid for i in range(2)] == ["u-1", uid_of("b")]
    texts = source.texts_of_shard(0).to_pylist()
    assert [(t["row"], t["language"], t["text_index"], t["text"]) for t in texts] == [
        (0, "en", 0, "one"), (0, "en", 1, "two"), (0, "de", 0, "eins"), (1, "de", 0, "zwei"),
    ]  # fmt: skip


def test_lines_of_a_text_file_are_captions_with_txt_lines(tmp_path):
    write_tar(tmp_path / "x.tar", [("a", members(0, txt=b"one\ntwo\n"))])
    assert index(tmp_path, f"{tmp_path}/x.tar", texts={"en": "txt.lines"})[0].texts == {"en": ["one", "two"]}


def test_uid_survives_resharding(tmp_path):
    make_pool(tmp_path / "one", [6])
    make_pool(tmp_path / "three", [2, 2, 2])
    uids = [
        [source[i].uid for i in range(6)]
        for source in (index(tmp_path / name, f"{tmp_path}/{name}") for name in ("one", "three"))
    ]
    assert uids[0] == uids[1]
    assert all(len(uid) == 32 and int(uid, 16) >= 0 for uid in uids[0])


def test_counts_beside_a_tar_are_used_without_reading_the_tar(tmp_path):
    make_pool(tmp_path / "t", [12, 3])
    (tmp_path / "t/000_stats.json").write_text(json.dumps({"count": 15, "successes": 12}))
    statuses = ["success", "failed_to_download", "success", "success"]
    pq.write_table(pa.table({"status": statuses}), tmp_path / "t/001.parquet")
    source = index(tmp_path, f"{tmp_path}/t")
    assert not (tmp_path / "artifact" / "offsets" / "000001.offsets").exists()
    assert source.shard_sizes.tolist() == [12, 3]
    assert contents(source)[:6] == EXPECTED
    assert (tmp_path / "artifact" / "offsets" / "000001.offsets").is_file(), "the scan is kept when it is made"
    assert contents(Source(source.directory)) == contents(source)


@pytest.mark.parametrize("stats", ["{broken", "[12]", '{"count": 12}', '{"successes": "many"}'])
def test_unreadable_count_is_ignored_and_the_tar_is_read(tmp_path, stats):
    make_pool(tmp_path / "t", [12])
    (tmp_path / "t/000_stats.json").write_text(stats)
    assert index(tmp_path, f"{tmp_path}/t").shard_sizes.tolist() == [12]
    assert (tmp_path / "artifact" / "offsets" / "packed.offsets").is_file()


def test_remote_tars_are_read_through_fsspec(tmp_path):
    make_pool(tmp_path / "t", [4, 2])
    for name in ("000", "001"):
        with fsspec.open(f"memory://readers/{name}.tar", "wb") as stream:
            stream.write((tmp_path / f"t/{name}.tar").read_bytes())
    assert contents(index(tmp_path, "memory://readers/{000..001}.tar")) == EXPECTED
    assert contents(index(tmp_path / "folder", "memory://readers")) == EXPECTED


def test_unsorted_tar_is_read_like_a_sorted_one(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for extension in ("png", "txt"):
            for n in range(200):
                data = members(n)[extension]
                info = tarfile.TarInfo(f"./{n:06d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    source = index(tmp_path, f"{tmp_path}/x.tar")
    assert contents(source) == [(encoded(n), {"en": [f"caption {n}"]}) for n in range(200)]


def test_without_verify_tars_are_counted_and_bad_samples_stay(tmp_path):
    make_pool(tmp_path / "t", [3], broken={1: {"txt": None}})
    assert len(index(tmp_path, f"{tmp_path}/t", verify=False)) == 3


def make_images(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    for n in range(6):
        (folder / f"sub/{n}.png").write_bytes(encoded(n))
    return folder


def test_folder_of_images_with_captions_in_text_files_of_the_same_name(tmp_path):
    folder = make_images(tmp_path / "images")
    for n in range(6):
        (folder / f"sub/{n}.txt").write_text(f"caption {n}\n")
    source = index(tmp_path, str(folder))
    assert contents(source) == EXPECTED
    assert source.keys == [f"sub/{n}" for n in range(6)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_table_of_image_paths_and_captions(tmp_path, kind):
    folder = make_images(tmp_path / "images")
    rows = [{"image": f"sub/{n}.png", "caption": f"caption {n}"} for n in range(6)]
    table = folder / f"captions.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    else:
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["image", "caption"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    assert contents(index(tmp_path / "a", str(table))) == EXPECTED
    assert contents(index(tmp_path / "b", str(folder))) == EXPECTED, "captions.* in a folder is its table"


def test_rows_of_one_image_are_one_sample_and_columns_are_languages(tmp_path):
    folder = make_images(tmp_path / "images")
    (tmp_path / "t.csv").write_text(
        'img,en,de\nsub/0.png,"one, with a comma",eins\nsub/0.png,two,\nsub/1.png,three,drei\n', encoding="utf-8"
    )
    source = index(tmp_path, f"{tmp_path}/t.csv", image_root=str(folder), texts={"en": "en", "de": "de"})
    assert [source[i].texts for i in range(2)] == [
        {"en": ["one, with a comma", "two"], "de": ["eins"]},
        {"en": ["three"], "de": ["drei"]},
    ]


def test_parquet_with_image_bytes_plain_and_from_hugging_face(tmp_path):
    captions = [f"caption {n}" for n in range(6)]
    plain = pa.table({"jpg": [encoded(n) for n in range(6)], "caption": captions})
    nested = pa.table({"image": [{"bytes": encoded(n), "path": None} for n in range(6)], "text": captions})
    for name, table in (("plain", plain), ("nested", nested)):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        assert contents(index(tmp_path / name, f"{tmp_path}/{name}.parquet")) == EXPECTED


def test_num_samples_uses_the_first_good_samples(tmp_path):
    make_pool(tmp_path / "t", [4, 4], broken={1: {"txt": None}})
    source = index(tmp_path, f"{tmp_path}/t", num_samples=5, max_bad_fraction=0.5)
    assert source.keys == ["000000", "000002", "000003", "000004", "000005"]
    assert len(index(tmp_path / "more", f"{tmp_path}/t", num_samples=100, max_bad_fraction=0.5)) == 7


def label(tmp_path, path, **fields):
    stage = Labeled(kind="data.labeled", name="val", path=str(path), **fields)
    stage.preflight(None)
    dataset = stage.run(context(tmp_path / "artifact"))
    source = open_dataset(dataset)
    return dataset, [(source[i].image, source[i].label) for i in range(len(source))]


def test_image_folder_of_classes(tmp_path):
    for n, name in enumerate(["dog", "cat", "dog"]):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name / f"{n}.png").write_bytes(encoded(n))
    dataset, samples = label(tmp_path, tmp_path / "data")
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.templates == ["a photo of a {}."]
    assert samples == [(encoded(1), 0), (encoded(0), 1), (encoded(2), 1)]


def test_tars_with_cls_in_clip_benchmark_layout(tmp_path):
    (tmp_path / "wds/test").mkdir(parents=True)
    rows = [(f"s{n}", members(n, txt=None, cls=str(n % 2).encode())) for n in range(4)]
    write_tar(tmp_path / "wds/test/0.tar", rows)
    (tmp_path / "wds/classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "wds/zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}.\n")
    dataset, samples = label(tmp_path, tmp_path / "wds/test/0.tar")
    assert (dataset.class_names, dataset.templates) == (["cat", "dog"], ["a {}.", "the {}."])
    assert samples == [(encoded(n), n % 2) for n in range(4)]


def test_labels_of_tables_and_of_hugging_face_parquet(tmp_path):
    folder = make_images(tmp_path / "images")
    (folder / "labels.csv").write_text("image,label\nsub/0.png,dog\nsub/1.png,cat\n")
    dataset, samples = label(tmp_path / "a", folder / "labels.csv")
    assert dataset.class_names == ["cat", "dog"]
    assert samples == [(encoded(0), 1), (encoded(1), 0)]
    schema = {"info": {"features": {"label": {"names": ["x", "y"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [encoded(0), encoded(1)], "label": [1, 0]}, metadata={"huggingface": json.dumps(schema)})
    pq.write_table(table, tmp_path / "hf.parquet")
    dataset, samples = label(tmp_path / "b", tmp_path / "hf.parquet")
    assert dataset.class_names == ["x", "y"]
    assert samples == [(encoded(0), 1), (encoded(1), 0)]


@pytest.mark.parametrize(
    ("value", "number"),
    [("cat", 0), ("1", 1), (1.0, 1), (1.5, None), (2, None), (None, None), (float("inf"), None)],
)
def test_label_is_a_name_or_an_integer(value, number):
    spec = DatasetSpec(label_key="label", class_names=["cat", "dog"])
    if number is not None:
        assert spec.label_of(value, "here") == number
        return
    with pytest.raises(BadSample, match=r"here.*: (missing|unknown)_label"):
        spec.label_of(value, "here")


@pytest.mark.parametrize("labels", [[0.0, 1.0, 10.0], [3, 0, -1]])
def test_numbers_name_no_classes(tmp_path, labels):
    pq.write_table(pa.table({"image": [encoded(n) for n in range(3)], "label": labels}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="the labels in 'label' are numbers; give class_names"):
        label(tmp_path / "made", tmp_path / "x.parquet")


def test_a_schema_with_broken_notes_names_no_classes(tmp_path):
    table = pa.table({"image": [encoded(0), encoded(1)], "label": ["dog", "cat"]}, metadata={"huggingface": "{"})
    pq.write_table(table, tmp_path / "x.parquet")
    assert label(tmp_path / "made", tmp_path / "x.parquet")[0].class_names == ["cat", "dog"]


def test_class_names_in_another_encoding_raise(tmp_path):
    write_tar(tmp_path / "0.tar", [("a", members(0, cls=b"0"))])
    (tmp_path / "classnames.txt").write_bytes("Füchse\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classnames\.txt: not UTF-8"):
        label(tmp_path / "out", tmp_path / "0.tar")


def test_torchvision_dataset_by_name(tmp_path):
    import struct

    import numpy as np

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    labels = (np.arange(300) % 10).astype(np.uint8)
    (raw / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 300, 28, 28) + pixels.tobytes())
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 300) + labels.tobytes())
    for split in ("train-images-idx3", "train-labels-idx1"):
        (raw / f"{split}-ubyte").write_bytes(b"")
    from vfm.data.samples.images import decode_image

    dataset, samples = label(tmp_path, tmp_path, torchvision="FashionMNIST")
    assert dataset.class_names[:2] == ["T-shirt/top", "Trouser"]
    assert [number for _, number in samples] == labels.tolist()
    assert np.array_equal(np.asarray(decode_image(samples[7][0], ""))[..., 0], pixels[7])
    with pytest.raises(UserError, match="did you mean 'FashionMNIST'"):
        label(tmp_path / "x", tmp_path, torchvision="FashonMNIST")
    with pytest.raises(UserError, match="torchvision cannot read CIFAR10"):
        label(tmp_path / "x", tmp_path, torchvision="CIFAR10")


def test_stage_saves_panels_of_first_images_and_shards(tmp_path):
    make_pool(tmp_path / "t", [3])
    source = index(tmp_path, f"{tmp_path}/t")
    panels = {panel.title: panel for panel in load_panels(source.directory)}
    assert [picture.caption for picture in panels["First samples"].pictures] == [f"caption {n}" for n in range(3)]
    assert all((source.directory / picture.file).is_file() for picture in panels["First samples"].pictures)
    assert panels["Shards"].rows[0][2] == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.tar", "no such file"),
        (lambda folder: folder, "no images found"),
        (lambda folder: folder / "x.tar.gz", "expected an uncompressed .tar"),
        (lambda folder: folder / "x.tar", "not a tar"),
        (lambda folder: folder / "x.doc", "unknown format"),
        (lambda folder: folder / "x.csv", "no column 'caption' .texts.; the columns are a, b"),
        (lambda folder: folder / "x.parquet", "not readable as parquet"),
        (lambda folder: folder / "nothing.csv", r"nothing\.csv: the table is empty"),
        (lambda folder: folder / "nothing.jsonl", r"nothing\.jsonl: the table is empty"),
        (lambda folder: folder / "head.csv", "none of the first samples can be used"),
    ],
)
def test_unreadable_data_raise_one_line(tmp_path, make, message):
    import gzip

    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(bytes(2048)))
    (tmp_path / "x.tar").write_bytes(b"something else" * 100)
    (tmp_path / "x.doc").touch()
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "nothing.csv").touch()
    (tmp_path / "nothing.jsonl").touch()
    (tmp_path / "head.csv").write_text("image,caption\n")
    if (path := make(tmp_path)) == tmp_path:
        path = tmp_path / "empty"
        path.mkdir()
    with pytest.raises(UserError, match=message) as caught:
        index(tmp_path / "out", str(path))
    assert "\n" not in str(caught.value)


class Base64Shard(ShardReader):
    """A line for each sample: the image in base64, a tab, the caption."""

    format = "base64"
    extensions = ("b64",)

    def __init__(self, path: str, spec: DatasetSpec, name: str | None = None) -> None:
        super().__init__(path, spec, name)
        self.lines = Path(path).read_text().splitlines()

    def __len__(self) -> int:
        return len(self.lines)

    def key(self, row: int) -> str:
        return f"{self.name}/{row}"

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        image, _, caption = self.lines[row].partition("\t")
        if not caption:
            raise BadSample("missing_caption", self.where(row))
        return Sample(self.key(row), uid_of(self.key(row)), base64.b64decode(image), {"en": [caption]})


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_format_of_a_plugin_is_one_class(tmp_path, in_folder):
    lines = [f"{base64.b64encode(encoded(n)).decode()}\tcaption {n}" for n in range(6)]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.b64").write_text("\n".join([*lines[:4], base64.b64encode(encoded(9)).decode()]))
    (tmp_path / "raw/b.b64").write_text("\n".join(lines[4:]))
    path = f"{tmp_path}/raw" if in_folder else [f"{tmp_path}/raw/a.b64", f"{tmp_path}/raw/b.b64"]
    source = index(tmp_path, path, max_bad_fraction=0.2)
    assert contents(source) == EXPECTED
    assert source.shard_sizes.tolist() == [4, 2]
    assert source.texts_of_shard(1)["text"].to_pylist() == ["caption 4", "caption 5"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="real pictures are not here")
@pytest.mark.parametrize(("name", "count"), [("flickr8k-train", 5999), ("flickr8k-dev", 1000)])
def test_flickr8k_has_its_samples_in_five_languages(tmp_path, name, count):
    languages = ["en", "de", "fr", "cs", "ar"]
    source = index(tmp_path, f"{SHARED}/{name}.tar", texts={code: f"json.{code}" for code in languages})
    assert len(source) == count
    first = source[0]
    assert len(first.texts["en"]) == 5
    texts = source.texts_of_shard(0)
    assert set(texts["language"].to_pylist()) == set(languages)
    assert texts["text"].to_pylist()[:5] == first.texts["en"]
    assert len(set(source.keys)) == count
