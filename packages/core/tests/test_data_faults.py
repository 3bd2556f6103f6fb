"""Bad samples are left out, counted by reason and reported with their address; too many stop the stage."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import EN, bomb, context, encoded, json_member, make_pool, members
from vfm.base import UserError
from vfm.data import BadSample, Source, open_dataset, write_tar
from vfm.data.pairs.stages import Images, Pairs
from vfm.data.reading.byte_ranges import OpenFile
from vfm.data.samples.images import decode_image, open_image
from vfm.data.tar.members import Gap
from vfm.data.tar.scan import TarContent
from vfm.data.tar.webdataset import TarShard
from vfm.interfaces import load_panels

MEGABYTE_CAPTION = b"a very long caption " * 52_429

FAULTS: dict[str, dict[str, bytes | None]] = {
    "missing_image": {"png": None},
    "missing_caption": {"txt": None},
    "caption_too_long": {"txt": MEGABYTE_CAPTION},
    "wrong_encoding": {"txt": "Übergröße".encode("latin-1")},
    "unreadable_image": {"png": b"no image at all"},
    "image_too_large": {"png": bomb()},
    "broken_json": {"json": b"{"},
}


def indexed(tmp_path: Path, path: str, **fields):
    ctx = context(tmp_path / "artifact")
    pool = Pairs(kind="data.pairs", name="pool", path=path, **fields).run(ctx)
    return ctx, pool, open_dataset(pool)


def test_each_fault_is_left_out_counted_by_reason_and_reported_with_its_address(tmp_path):
    make_pool(tmp_path / "t", [20, 20], broken={3 * n: change for n, change in enumerate(FAULTS.values())})
    ctx, pool, source = indexed(tmp_path, f"{tmp_path}/t", max_bad_fraction=0.5)
    assert ctx.bad == dict.fromkeys(FAULTS, 1) == pool.bad_samples
    assert pool.num_samples == len(source) == 40 - len(FAULTS)
    assert source.keys == [f"{n:06d}" for n in range(40) if n % 3 or n >= 3 * len(FAULTS)]
    for index in range(len(source)):
        decode_image(source[index].image, "")
    rows = next(panel for panel in load_panels(ctx.directory) if panel.title == "Bad samples").rows
    assert {(row[0], row[2].rpartition(":")[2]) for row in rows} == {
        (reason, f"{3 * n:06d}") for n, reason in enumerate(FAULTS)
    }


def test_too_many_bad_samples_stop_the_stage(tmp_path):
    make_pool(tmp_path / "t", [10], broken={4: {"txt": None}, 7: {"txt": None}})
    with pytest.raises(UserError, match=r"pool: 2 of 10 .*missing_caption \(2\).*max_bad_fraction: 0.1.*tar:000004"):
        indexed(tmp_path, f"{tmp_path}/t", max_bad_fraction=0.1)


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 2000, 20_000, 31_000])
def test_truncated_tar_keeps_complete_samples_and_counts_the_cut_once(tmp_path, cut):
    make_pool(tmp_path / "t", [20])
    path = tmp_path / "t/000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] if cut > 1 else whole[:-10_240])
    if cut in (511, 512, 700, 2000):  # no complete sample is left
        with pytest.raises(UserError, match=r"no samples found|are bad: truncated_shard"):
            indexed(tmp_path, str(path), max_bad_fraction=1.0)
        return
    ctx, pool, source = indexed(tmp_path, str(path), max_bad_fraction=1.0)
    assert ctx.bad.total() == 1
    assert 0 < pool.num_samples <= 20
    assert [source[i].image for i in range(len(source))] == [encoded(n) for n in range(len(source))]


def test_tar_shorter_than_its_known_count_counts_each_lost_sample(tmp_path):
    make_pool(tmp_path / "t", [20])
    path = tmp_path / "t/000.tar"
    path.write_bytes(path.read_bytes()[:10_000])
    (tmp_path / "t/000_stats.json").write_text('{"successes": 20}')
    ctx, pool, source = indexed(tmp_path, str(path), max_bad_fraction=1.0)
    assert pool.num_samples == len(source) == 20 - ctx.bad["truncated_shard"]
    assert ctx.bad == pool.bad_samples
    assert [source[index].image for index in range(len(source))] == [encoded(n) for n in range(len(source))]
    with pytest.raises(UserError, match=r"17 of 20 samples are bad: truncated_shard \(17\)"):
        indexed(tmp_path / "b", str(path))


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil"])
def test_unsafe_names_in_tars_are_refused(tmp_path, name):
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "x.tar", "w") as tar:
        for key in ("good", name):
            for extension, data in members(1).items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    ctx, _, source = indexed(folder, f"{folder}/x.tar", max_bad_fraction=0.5)
    assert ctx.bad == {"unsafe_path": 1}
    assert source.keys == ["good"]
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_tars_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(9))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    reader = TarShard(f"{tmp_path}/x.tar", (tmp_path / "x.tar").stat().st_size, EN)
    with pytest.raises(BadSample, match="missing_image"):
        reader.read(0)


def test_member_named_pickle_stays_bytes(tmp_path):
    write_tar(tmp_path / "x.tar", [("a", members(0, pkl=b"cos\nsystem\n(S'touch owned'\ntR.", json=json_member(x=1)))])
    _, _, source = indexed(tmp_path, f"{tmp_path}/x.tar")
    assert source[0].image == encoded(0)


def test_shard_that_changed_since_it_was_indexed_raises(tmp_path):
    pool = make_pool(tmp_path / "t", [5])
    with (tmp_path / "t/000.tar").open("ab") as stream:
        stream.write(bytes(512))
    with pytest.raises(UserError, match=r"000\.tar: changed since it was indexed"):
        open_dataset(pool)[0]


def test_faults_of_tables_and_folders(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.png").write_bytes(encoded(n))
    (folder / "bomb.png").write_bytes(bomb())
    rows = [
        b"0.png,good",
        b"1.png,",
        b"2.png," + MEGABYTE_CAPTION,
        "0.png,Größe".encode("latin-1"),
        b"../t.csv,outside",
        b"none.png,no image",
        b"bomb.png,boom",
        b",no path",
        b",nor here",
    ]
    (folder / "t.csv").write_bytes(b"image,caption\n" + b"\n".join(rows) + b"\n")
    ctx, pool, source = indexed(tmp_path, f"{folder}/t.csv", max_bad_fraction=1.0)
    assert source.keys == ["0.png"]
    assert pool.bad_samples == ctx.bad == {
        "missing_caption": 1, "caption_too_long": 1, "wrong_encoding": 1, "unsafe_path": 1, "missing_image": 3,
        "image_too_large": 1,
    }  # fmt: skip
    (folder / "0.txt").write_text("good")
    (folder / "1.txt").write_bytes(b"\xff\xfe")
    ctx, _, source = indexed(tmp_path / "b", str(folder), format="folder", max_bad_fraction=1.0)
    assert source.keys == ["0"]
    assert ctx.bad == {"wrong_encoding": 1, "missing_caption": 2}


def test_table_without_rows_has_no_samples(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=r"no samples found in .*t\.csv$"):
        indexed(tmp_path, f"{tmp_path}/t.csv")


def test_a_first_tar_without_samples_is_passed_over_before_a_run(tmp_path):
    write_tar(tmp_path / "0.tar", [])
    write_tar(tmp_path / "1.tar", [("a", members(0))])
    config = Pairs(kind="data.pairs", name="pool", path=f"{tmp_path}/{{0..1}}.tar")
    config.preflight(None)
    assert len(open_dataset(config.run(context(tmp_path / "made")))) == 1


def test_an_error_of_the_disk_names_its_file(tmp_path):
    with pytest.raises(OSError, match="/proc/self/mem"):  # a regular file, of which the first bytes cannot be read
        OpenFile("/proc/self/mem")(0, 8)


def test_list_without_images_has_no_samples(tmp_path):
    (tmp_path / "list.txt").touch()
    config = Images(kind="data.images", name="images", path=f"{tmp_path}/list.txt")
    with pytest.raises(UserError, match=r"no samples found in .*list\.txt$"):
        config.run(context(tmp_path))


def test_faults_of_json_lines(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(0))
    lines = [
        b"{broken",
        b'{"image": "0.png", "caption": "good"}',
        b"[1]",
        b"2",  # JSON, but not an object
        b'{"image": "0.png", "caption": "half \\ud83d pair"}',
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    ctx, _, source = indexed(tmp_path, f"{tmp_path}/t.jsonl", max_bad_fraction=1.0)
    assert len(source) == 1
    assert ctx.bad == {"broken_json": 3, "wrong_encoding": 1}


def test_faults_of_parquet_are_raised_when_a_row_is_read(tmp_path):
    images = [encoded(0), None, encoded(2)]
    pq.write_table(pa.table({"image": images, "caption": ["a", "b", None]}), tmp_path / "x.parquet")
    _, _, source = indexed(tmp_path, f"{tmp_path}/x.parquet")
    assert source[0].texts == {"en": ["a"]}
    for index, reason in ((1, "missing_image"), (2, "missing_caption")):
        with pytest.raises(BadSample, match=reason):
            source[index]


def test_texts_of_a_shard_report_bad_samples_and_continue(tmp_path):
    make_pool(tmp_path / "t", [4], broken={1: {"txt": b"\xff"}})
    (tmp_path / "t/000_stats.json").write_text('{"successes": 4}')
    _, _, source = indexed(tmp_path, f"{tmp_path}/t/000.tar")
    reported = []
    assert source.texts_of_shard(0, lambda *bad: reported.append(bad))["row"].to_pylist() == [0, 2, 3]
    assert reported == [("wrong_encoding", f"{tmp_path}/t/000.tar:000001")]


def test_decompression_bomb_is_refused_by_its_header():
    import tracemalloc

    tracemalloc.start()
    for data in (bomb(), bomb(8001, 8001), bomb(2**31 - 1, 2**31 - 1)):
        with pytest.raises(BadSample, match=r"image_too_large|unreadable_image"):
            open_image(data, "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    assert open_image(bomb(8000, 8000), "here").size == (8000, 8000), "at the limit the header is believed"


def test_damaged_images_of_all_formats_are_bad_samples():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encoded(1, kind, (40, 30))
        assert decode_image(data, "").size == (40, 30)
        for place in range(8, len(data), max(1, len(data) // 40)):
            for broken in (data[:place], data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]):
                assert outcome(broken) in ("RGB", "unreadable_image", "image_too_large")


def outcome(data: bytes) -> str:
    try:
        return decode_image(data, "").mode
    except BadSample as bad:
        return bad.reason


def test_missing_index_raises(tmp_path):
    with pytest.raises(UserError, match="expected a dataset of images"):
        Source(tmp_path)


@pytest.mark.parametrize("number", range(20))  # the order of two names in a set is the wrong one for half of them
def test_a_lost_member_belongs_to_the_sample_before_the_gap_first(number):
    before, after = f"{number:03d}", f"{number + 1:03d}"
    content = TarContent("a.tar", ["image", "txt"], {"jpg"}, rows={"whole": [], before: [], after: []})
    content.members.update({"whole": 2, "other": 2, "third": 2, before: 1, after: 1})
    content.gaps.append((Gap(start=512, stop=1024, names=("lost.jpg",)), before))
    content.after[before] = after
    assert content.damage() == ((1,), [])
