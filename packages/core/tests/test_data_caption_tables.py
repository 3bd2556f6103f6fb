"""Tables of captions without images: texts are unchanged, bad rows are reported, and there are no images."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data_samples import context
from vfm.base import UserError
from vfm.data import BadSample, open_dataset, uid_of
from vfm.data.pairs.stages import Pairs
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.parquet import ParquetShard
from vfm.interfaces import Context, Preflight


def pool_of(tmp_path, path, **settings):
    stage = Pairs(name="pool", path=str(path), images=False, **settings)
    stage.preflight(Preflight({}, {}))
    return stage.run(context(tmp_path / "store", "pool"))


def texts_of(pool, on_bad=None):
    source = open_dataset(pool)
    return [row for shard in range(len(source.shard_sizes)) for row in source.texts_of_shard(shard, on_bad).to_pylist()]


TSV = b'flickr\tA "quoted" dog\ncoco\t  a cat \ncoco\t\nweb\t\xff\xfe broken\nweb\tein Hund\n'


@pytest.mark.parametrize("packed", [False, True])
def test_table_without_header_uses_the_given_column_names(tmp_path, packed):
    path = tmp_path / ("captions.tsv.gz" if packed else "captions.tsv")
    path.write_bytes(gzip.compress(TSV) if packed else TSV)
    pool = pool_of(tmp_path, path, header=["source", "caption"])
    bad = []
    rows = texts_of(pool, lambda reason, where: bad.append(reason))
    assert [row["text"] for row in rows] == ['A "quoted" dog', "a cat", "ein Hund"]
    assert [row["row"] for row in rows] == [0, 1, 4]
    assert len({row["uid"] for row in rows}) == 3
    assert bad == ["missing_caption", "wrong_encoding"]
    with pytest.raises(BadSample, match="missing_image"):
        open_dataset(pool)[0]


def test_languages_uids_and_urls_are_kept(tmp_path):
    rows = [
        {"uid": f"{i:032x}", "url": f"http://x/{i}.jpg", "meta": {"en": [f"one {i}", "two"], "de": f"eins {i}"}}
        for i in range(5)
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"meta": {}}])))
    pool = pool_of(tmp_path, path, texts={"en": "meta.en", "de": "meta.de"})
    assert pool.languages == ["en", "de"]
    found = texts_of(pool)
    assert len(found) == 15
    assert found[3] == {"row": 1, "uid": f"{1:032x}", "language": "en", "text_index": 0, "text": "one 1"}
    shard = open_dataset(pool).index.open(0)
    assert shard.read(2, with_image=False).url == "http://x/2.jpg"


def test_uids_and_urls_missing_in_the_first_row_are_kept_and_integers_are_uids(tmp_path):
    rows = [{"text": "zero"}, {"text": "one", "uid": 17, "url": "http://x/1.jpg"}, {"text": "two", "uid": "u2"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pool = pool_of(tmp_path, tmp_path / "captions.jsonl")
    assert [row["uid"] for row in texts_of(pool)][1:] == ["17", "u2"]
    shard = open_dataset(pool).index.open(0)
    assert [shard.read(row, with_image=False).url for row in range(3)] == [None, "http://x/1.jpg", None]

    pq.write_table(pa.table({"uid": [3, None, 5], "text": ["a", "b", "c"]}), tmp_path / "numbers.parquet")
    pool = pool_of(tmp_path / "parquet", tmp_path / "numbers.parquet")
    by_column, shard = [row["uid"] for row in texts_of(pool)], open_dataset(pool).index.open(0)
    assert by_column == [shard.read(row, with_image=False).uid for row in range(3)]
    assert by_column[::2] == ["3", "5"]


def test_files_of_the_same_name_in_two_folders_have_different_uids(tmp_path):
    for name in ("a1/0", "a2/0", "a2/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": ["same", "same"]}), tmp_path / f"{name}.parquet")
    uids = [row["uid"] for row in texts_of(pool_of(tmp_path, tmp_path / "a*/*.parquet"))]
    assert len(set(uids)) == 6
    assert uids[:2] == [uid_of("a1/0/00000000"), uid_of("a1/0/00000001")]
    one_folder = [row["uid"] for row in texts_of(pool_of(tmp_path / "one", tmp_path / "a2/*.parquet"))]
    assert one_folder[2:] == [uid_of("1/00000000"), uid_of("1/00000001")]


def test_parquet_is_used_in_place(tmp_path):
    for number in range(3):
        table = {"uid": [f"{number}-{i}" for i in range(4)], "text": [f"text {number} {i}" for i in range(4)]}
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet")
    pool = pool_of(tmp_path, tmp_path / "{0..2}.parquet")
    assert [row["uid"] for row in texts_of(pool)] == [f"{number}-{i}" for number in range(3) for i in range(4)]
    assert [one.path for one in open_dataset(pool).index.shards] == [str(tmp_path / f"{n}.parquet") for n in range(3)]
    assert not list(pool.path.glob("captions-*"))


def test_too_deeply_nested_line_is_one_bad_row(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"text": "a dog"}\n{"text": ' + "[" * 200_000 + "\n" + '{"text": "b"}\n')
    bad = []
    found = texts_of(pool_of(tmp_path, tmp_path / "captions.jsonl"), lambda reason, where: bad.append(reason))
    assert [row["text"] for row in found] == ["a dog", "b"]
    assert len(bad) == 1


def test_unreadable_caption_tables_raise_one_line(tmp_path):
    path = tmp_path / "captions.tsv.gz"
    path.write_bytes(gzip.compress(TSV)[:-20])
    with pytest.raises(UserError, match=r"captions\.tsv\.gz: not readable: "):
        pool_of(tmp_path, path, header=["source", "caption"])
    path.write_bytes(gzip.compress(TSV))
    with pytest.raises(UserError, match=r"no column 'caption' \(texts\); the columns are flickr, A "):
        pool_of(tmp_path, path)
    with pytest.raises(UserError, match="no such file"):
        pool_of(tmp_path, tmp_path / "none.tsv")
    for name, begin in (("captions.jsonl.gz", b""), ("captions.csv.gz", b"text\n")):
        whole = gzip.compress(begin + b'{"text": "a dog"}\n' * 5000)
        for broken in (whole[:-20], whole[:30] + b"?" * 9 + whole[39:], b"no gzip"):
            (tmp_path / name).write_bytes(broken)
            with pytest.raises(UserError, match=rf"{name}: not readable: "):
                pool_of(tmp_path, tmp_path / name)
    pq.write_table(pa.table({"text": ["a dog"] * 9}), tmp_path / "0.parquet")
    footed = bytearray((tmp_path / "0.parquet").read_bytes())
    footed[-60:-8] = b"?" * 52
    (tmp_path / "0.parquet").write_bytes(footed)
    with pytest.raises(UserError, match=r"0\.parquet: not readable as parquet: ") as caught:
        pool_of(tmp_path, tmp_path / "0.parquet")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError, match="set images: false"):
        Pairs(name="pool", path=str(path), header=["a"], images=True)


def without_images(tmp_path, name, path, **settings):
    """Index a path as the user gives it, without `images: false`, and return the pool and what was logged."""
    folder, lines = tmp_path / f"store-{name}", []
    folder.mkdir()
    stage = Pairs(name="pool", path=str(path), **settings)
    stage.preflight(Preflight({}, {}))
    return stage.run(Context("pool", folder, folder, {}, lambda event: lines.append(event.data.get("message")))), lines


@pytest.mark.parametrize("name", ["0.parquet", "0.csv", "0.tsv.gz", "0.jsonl", "folder"])
def test_a_table_without_images_needs_no_setting_and_a_line_says_so(tmp_path, name):
    columns, path = {"caption": ["a dog", "a cat"], "url": ["http://x/1", "http://x/2"]}, tmp_path / name
    if name == "folder":
        path.mkdir()
    if name in ("folder", "0.parquet"):
        pq.write_table(pa.table(columns), path / "0.parquet" if name == "folder" else path)
    elif name == "0.jsonl":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        separator = "," if name == "0.csv" else "\t"
        text = "".join(separator.join(row) + "\n" for row in [tuple(columns), *zip(*columns.values(), strict=True)])
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    pool, lines = without_images(tmp_path, name, path)
    assert [row["text"] for row in texts_of(pool)] == ["a dog", "a cat"]
    assert not open_dataset(pool).index.spec.images
    assert any(line and "no column of images, so only its captions are read" in line for line in lines)


def test_names_of_columns_are_enough_for_a_table_of_captions_without_a_header(tmp_path):
    (tmp_path / "0.tsv").write_bytes(TSV)
    pool, _ = without_images(tmp_path, "tsv", tmp_path / "0.tsv", header=["source", "caption"])
    assert len(texts_of(pool)) == 3


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"caption": ["a"], "picture": [b"x"]}, {}, "no column 'image'"),
        ({"caption": ["a"]}, {"image_key": "photo"}, "no column 'photo'"),
        ({"caption": ["a"]}, {"images": True}, "no column 'image'"),
        ({"words": ["a"]}, {}, "no column"),
    ],
)
def test_tables_that_may_have_images_are_read_as_before(tmp_path, columns, settings, message):
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    with pytest.raises(UserError, match=message):
        Pairs(name="pool", path=str(tmp_path / "0.parquet"), **settings).preflight(Preflight({}, {}))


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("kind", [pa.binary(16), pa.binary(), pa.uuid()])
def test_uids_of_bytes_are_the_hexadecimal_digits_of_other_tables(tmp_path, kind, images):
    digits = [f"{n:032x}" for n in range(3)]
    values = [bytes.fromhex(text) for text in digits]
    uids = pa.array(values, pa.binary(16))
    uids = pa.ExtensionArray.from_storage(kind, uids) if kind == pa.uuid() else uids.cast(kind)
    table = pa.table({"uid": uids, "text": ["a", "b", "c"], **({"image": [b"\x89PNG"] * 3} if images else {})})
    pq.write_table(table, tmp_path / "t.parquet")
    if images:
        shard = ParquetShard(str(tmp_path / "t.parquet"), DatasetSpec(texts={"en": "text"}, image_key="image"))
        assert shard.texts(np.arange(3), print)["uid"].to_pylist() == digits
        assert [shard.read(row).uid for row in range(3)] == digits
    else:
        assert [row["uid"] for row in texts_of(pool_of(tmp_path, tmp_path / "t.parquet"))] == digits


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_caption_with_a_nul_has_a_reason_of_its_own(tmp_path, name):
    texts = ["a dog", "a\0 \0c\0a\0t\0", "a\0b"]
    if name == "t.jsonl":
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
    bad = []
    rows = texts_of(pool_of(tmp_path, tmp_path / name), lambda reason, where: bad.append(reason))
    assert [row["text"] for row in rows] == ["a dog"]
    assert bad == ["nul_in_caption"] * 2
