"""Arrow copies of Parquet tables give the same samples, batches, errors and addresses as the tables."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli_world import run_here
from data_samples import context, encoded, members, number_of, write_row_groups
from test_data_oracle import damage_group
from test_data_subset import subset_of
from vfm.base import UserError, decisive_settings
from vfm.data import BadSample, Source, TrainingData, open_dataset, write_tar
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.annotated.stages import Annotated
from vfm.data.index.index import copy_of
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.image_files import index_images
from vfm.data.pairs.stages import Images, Pairs
from vfm.interfaces import AnnotatedImages, Event, ImageDataset

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
PER_GROUP, PER_FILE = 3, 20
WAYS = {"table": False, "copy": True}


def index(directory: Path, path: Path, stage: Any = Pairs, **fields: Any) -> ImageDataset:
    made = stage(name="pool", path=str(path), **fields).run(context(directory))
    assert isinstance(made, ImageDataset)
    return made


def both(tmp_path: Path, path: Path, stage: Any = Pairs, **fields: Any) -> list[Source]:
    """Index data without and with copies."""
    sources = []
    for name, copy in WAYS.items():
        sources.append(open_dataset(index(tmp_path / name, path, stage, arrow_copy=copy, **fields)))
    return sources


def contents(source: Source) -> list[Any]:
    """Read every sample with its key and address, or the reason why it cannot be read."""
    found: list[Any] = []
    for number in range(len(source)):
        try:
            found.append((source[number], source.key(number), source.where(number)))
        except BadSample as bad:
            found.append((bad.reason, bad.where, source.key(number), source.where(number)))
    return found


def batches(source: Source, start: int, **changes: Any) -> list[Any]:
    data = TrainingData(source, number_of, seed=3, global_batch_size=8, shuffle_shards=2, **changes)
    found = []
    for (batch,) in data.steps(start, 9):
        found.append((batch.keys, [part.tolist() for part in vars(batch.inputs).values()]))
    return found


def test_batches_of_a_copy_are_those_of_the_table(tmp_path: Path) -> None:
    table, copy = both(tmp_path, write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP))
    expected = batches(table, 0)
    assert len(expected) == 9
    assert batches(copy, 0) == expected
    assert batches(copy, 0, workers=2) == expected
    assert batches(copy, 4) == expected[4:]


def test_batches_of_a_subset_of_a_copied_pool_are_those_of_the_table(tmp_path: Path) -> None:
    write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP)
    found = []
    for name, copy in WAYS.items():
        pool = index(tmp_path / name, tmp_path / "tables", arrow_copy=copy)
        rows = []
        for shard in range(2):
            texts = open_dataset(pool).texts_of_shard(shard).to_pylist()
            rows += [(shard, row["row"], row["uid"], row["language"], 0, 0.5) for row in texts if row["row"] % 3]
        found.append(batches(open_dataset(subset_of(pool, tmp_path / f"subset-{name}", rows)), 0))
    assert found[0] == found[1]
    assert len(found[0]) == 9


def test_samples_of_a_copy_need_no_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = both(tmp_path, write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP))[1]
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    assert [copy[number].image for number in range(2 * PER_FILE)] == [encoded(n) for n in range(2 * PER_FILE)]


def test_bad_rows_and_paths_of_images_are_those_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/one.png").write_bytes(encoded(1))
    rows = [
        ({"bytes": encoded(0), "path": None}, [{"en": "first", "de": "erstes"}, {"en": "again", "de": None}], "a"),
        ({"bytes": None, "path": "one.png"}, [{"en": "by path", "de": None}], "b"),
        ({"bytes": None, "path": None}, [{"en": "without an image", "de": None}], "c"),
        (None, [{"en": "without a struct", "de": None}], "d"),
        ({"bytes": None, "path": "../../outside.png"}, [{"en": "outside", "de": None}], "e"),
        ({"bytes": None, "path": "gone.png"}, [{"en": "gone", "de": None}], "f"),
        ({"bytes": encoded(2), "path": None}, [{"en": "in a damaged row group", "de": None}], "g"),
        ({"bytes": encoded(3), "path": None}, [{"en": "in a damaged row group", "de": None}], "h"),
        ({"bytes": encoded(4), "path": None}, [], None),
        ({"bytes": encoded(5), "path": None}, [{"en": "last", "de": "letztes"}], None),
    ]
    images, captions, keys = zip(*rows, strict=True)
    meta = [{"en": [one["en"] for one in some], "de": [one["de"] for one in some]} for some in captions]
    table = pa.table({"image": pa.array(images, IMAGE), "meta": meta, "key": keys, "site": ["x", "y"] * 5})
    table = table.set_column(3, "site", table["site"].dictionary_encode())
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    damage_group(tmp_path / "x.parquet", 3)
    fields = {"texts": {"en": "meta.en", "de": "meta.de"}, "image_root": str(tmp_path / "images"), "columns": ["site"]}
    plain, copied = both(tmp_path, tmp_path / "x.parquet", **fields)
    found = contents(plain)
    assert contents(copied) == found
    assert [entry[0] for entry in found if isinstance(entry[0], str)] == [
        "missing_image", "missing_image", "unsafe_path", "missing_image", "unreadable_row", "unreadable_row",
        "missing_caption",
    ]  # fmt: skip
    assert copied[0].texts == {"en": ["first", "again"], "de": ["erstes"]}
    assert copied[1].image == encoded(1)
    assert copied[1].columns == {"site": "y"}
    texts = [source.texts_of_shard(0).to_pylist() for source in (plain, copied)]
    assert texts[0] == texts[1]


def test_class_names_and_a_limit_of_samples_are_those_of_the_table(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": encoded(n), "path": None}, "label": n % 2} for n in range(10)]
    table = pa.Table.from_pylist(rows, pa.schema({"image": IMAGE, "label": pa.int64()}))
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    plain, copied = both(tmp_path, tmp_path / "x.parquet", Labeled, num_samples=5)
    assert contents(copied) == contents(plain)
    assert (len(copied), copied.class_names, copied[1].label) == (5, ["cat", "dog"], 1)
    with pa.ipc.open_stream(copy_of(tmp_path / "copy", 0)) as reader:
        assert reader.read_all().num_rows == 6, "row groups after the last sample are not copied"


def test_images_with_objects_are_those_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for n in range(7):
        image = {"bytes": encoded(n) if n != 2 else b"no image", "path": None}
        rows.append({"image": image, "image_id": n, "objects": {"bbox": [[n, 1, 4, 5]], "category": [n % 2]}})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=3)
    plain, copied = both(tmp_path, tmp_path / "x.parquet", Annotated, max_bad_fraction=0.2)
    assert contents(copied) == contents(plain)
    assert len(copied) == 6
    data = AnnotatedSource(AnnotatedImages.load(tmp_path / "copy"))
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    assert [data.image(number).size for number in range(6)] == [(24, 16)] * 6
    assert data.objects(2).boxes.tolist() == [[3, 1, 7, 6]]
    with pytest.raises(ValueError, match="arrow_copy is only valid with images: true"):
        Annotated(name="labels", path="x.parquet", images=False, arrow_copy=True)


def test_keys_that_repeat_have_the_names_of_the_user_s_files(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    for file in range(2):
        rows = [{"key": str(n), "image": encoded(n), "caption": "a caption"} for n in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"tables/{file}.parquet")
    plain, copied = both(tmp_path, tmp_path / "tables")
    assert contents(copied) == contents(plain)
    assert copied.where(5) == f"{tmp_path}/tables/1.parquet:1/00000001"


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    rows = [{"image": encoded(n), "caption": f"caption {n}" if n % 3 else None, "weight": n / 2 if n % 2 else None}
            for n in range(9)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=4)
    for name in "ab":
        index(tmp_path / name, tmp_path / "x.parquet", arrow_copy=True, columns=["weight"])
    for file in ("copies/000000.arrow", "shards.parquet", "index.json", "ledger.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_changed_table_and_a_damaged_copy_are_one_line(tmp_path: Path) -> None:
    write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP)
    pool = index(tmp_path / "pool", tmp_path / "tables", arrow_copy=True)
    file = copy_of(tmp_path / "pool", 0)
    data = file.read_bytes()
    for part, message in (
        (data[: len(data) // 2], r"000000\.arrow: not readable as Arrow"),
        (data[:8], r"000000\.arrow: "),
        (None, r"000000\.arrow: no such file"),
    ):
        file.unlink()
        if part is not None:
            file.write_bytes(part)
        with pytest.raises(UserError, match=message):
            open_dataset(pool)[0]
    with pa.ipc.open_stream(data) as reader:
        batch = reader.read_next_batch()
    with pa.ipc.new_stream(str(file), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(UserError, match=rf"000000\.arrow: expected {PER_FILE} rows, got {PER_GROUP}; index the data"):
        open_dataset(pool)[0]
    file.write_bytes(data)
    assert open_dataset(pool)[0].image == encoded(0)
    (tmp_path / "tables/0.parquet").write_bytes(b"other")
    with pytest.raises(UserError, match=r"0\.parquet: changed since it was indexed"):
        open_dataset(pool)[0]


def write_captions(path: Path) -> None:
    pq.write_table(pa.table({"caption": ["one", "two"]}), path)


def write_arrow(path: Path) -> None:
    table = pa.table({"image": [encoded(0)], "caption": ["one"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write", "found"),
    [
        ("x.tar", lambda path: write_tar(path, [("a", members(0))]), "shards of the format tar"),
        ("x.parquet", write_captions, "captions without images"),
        ("x.arrow", write_arrow, "Arrow, which needs no copy"),
    ],
)
def test_other_data_are_refused(tmp_path: Path, name: str, write: Callable[[Path], None], found: str) -> None:
    write(tmp_path / name)
    expected = f"^pool: arrow_copy: expected Parquet with a column of images, got {found}$"
    with pytest.raises(UserError, match=expected):
        index(tmp_path / "pool", tmp_path / name, arrow_copy=True)


def test_a_full_disk_leaves_no_part_of_a_copy(tmp_path: Path) -> None:
    write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            index(tmp_path / "pool", tmp_path / "tables", arrow_copy=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(copy_of(tmp_path / "pool", 0))
    assert list((tmp_path / "pool/copies").iterdir()) == []


def test_a_copy_is_part_of_the_artifact_which_is_the_same_as_before_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP)
    Path("r.yaml").write_text("stages:\n  - {kind: data.pairs, name: pool, path: tables, arrow_copy: true}\n")
    done = run_here("run", "r.yaml")
    assert (done.code, "Arrow copies of tables: 2, 0.0 GB" in done.out + done.err) == (0, True), done.err
    assert run_here("verify").code == 0
    (file,) = tmp_path.glob("store/**/000001.arrow")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    done = run_here("verify")
    assert (done.code, "copies/000001.arrow: not as it was written" in done.out + done.err) == (2, True)
    assert "arrow_copy" not in decisive_settings(Pairs(name="pool", path="tables"))
    assert decisive_settings(Pairs(name="pool", path="tables", arrow_copy=True))["arrow_copy"] is True
    index(tmp_path / "plain", tmp_path / "tables")
    assert "arrow_copy" not in (tmp_path / "plain/index.json").read_text()


def test_large_row_groups_are_announced_with_their_size(tmp_path: Path) -> None:
    image = encoded(0).ljust(6 << 20, b"\0")
    for name, rows in (("large", 15), ("small", 2)):
        table = pa.table({"image": pa.array([{"bytes": image, "path": None}] * rows, IMAGE), "caption": ["x"] * rows})
        options = {"compression": "none", "use_dictionary": False}
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=1, **options)
    lines = []
    for name, copy in (("large", False), ("large", True), ("small", False)):
        ctx = context(tmp_path / f"{name}-{copy}")
        events: list[Event] = []
        ctx.send = events.append
        index_images(Images(name="pool", path=str(tmp_path / f"{name}.parquet"), arrow_copy=copy), ctx)
        lines += [event.data["message"] for event in events if event.type == "log"]
    assert lines[0] == (
        f"{tmp_path}/large.parquet: reading a sample at random decodes a row group with 6 MB of images;"
        " arrow_copy: true writes a copy without this cost, of the size of the uncompressed tables"
    )
    assert lines[1:] == ["Arrow copies of tables: 1, 0.1 GB"]


def test_remote_tables_are_copied(tmp_path: Path) -> None:
    import fsspec

    write_row_groups(tmp_path / "tables", PER_FILE, PER_GROUP)
    for file in range(2):
        with fsspec.open(f"memory://copies/{file}.parquet", "wb") as stream:
            stream.write((tmp_path / f"tables/{file}.parquet").read_bytes())
    sources = []
    for name, copy in WAYS.items():
        made = index(tmp_path / name, "memory://copies/{0..1}.parquet", arrow_copy=copy)  # type: ignore[arg-type]
        sources.append(open_dataset(made))
    assert contents(sources[0]) == contents(sources[1])
