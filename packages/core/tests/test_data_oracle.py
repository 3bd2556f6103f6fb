"""Nothing is lost uncounted: of made damage it is known how many samples went in, and good + bad must be as many."""

import csv
import io
import json
import os
import random
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import context, encoded, members
from vfm.base import UserError
from vfm.data import (
    REASONS,
    BadSample,
    Source,
    open_dataset,
    open_parquet,
    write_tar,
)
from vfm.data.choices.choice_files import read_choices
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Images, Pairs

NUM = 12
BLOCK = 512
SUMS: dict[str, Counter[str]] = {}  # by test: damaged inputs, samples that were read, samples that were counted as bad


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the sums; `make oracle-test` shows them."""
    yield
    for name, sums in {**SUMS, "all": sum(SUMS.values(), Counter())}.items():
        sys.stdout.write(f"\n{name:82}{sums['inputs']:>6}{sums['read']:>8}{sums['counted']:>8}")


def indexed(folder: Path, path: object, stage=Pairs, **fields) -> tuple[Source, Counter[str]]:
    """Index a path; the reasons are those of indexing and of reading every sample."""
    kind = stage.kind_name()
    shutil.rmtree(folder, ignore_errors=True)
    ctx = context(folder)
    dataset = stage(kind=kind, name="pool", path=str(path), max_bad_fraction=1.0, **fields).run(ctx)
    source = open_dataset(dataset)
    assert ctx.bad == dataset.bad_samples
    bad = Counter(ctx.bad)
    for index in range(len(source)):
        try:
            source[index]
        except BadSample as problem:
            bad[problem.reason] += 1
    assert set(bad) <= set(REASONS)
    return source, bad


def outcome(folder: Path, path: object, stage=Pairs, **fields) -> tuple[int, Counter[str]]:
    """Return the number of good samples, and that of the bad ones by reason."""
    source, bad = indexed(folder, path, stage, **fields)
    good = len(source) - (bad - Counter(dict(_of_index(source)))).total()
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::test_")[2].split(" ")[0].partition("[")[0].replace("_", " ")
    SUMS.setdefault(name, Counter()).update(inputs=1, read=good, counted=bad.total())
    return good, bad


def _of_index(source: Source) -> Counter[str]:
    file = source.directory / "bad_samples.parquet"
    return Counter(pq.read_table(file)["reason"].to_pylist()) if file.is_file() else Counter()


def pairs(num: int = NUM) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"{n:06d}", members(n)) for n in range(num)]


def headers(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset for member in tar]


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_bit_in_a_tar_header_loses_one_sample_and_counts_it(tmp_path, part):
    write_tar(tmp_path / "x.tar", pairs())
    whole, rng = (tmp_path / "x.tar").read_bytes(), random.Random(part)
    for place in headers(whole)[part::4]:
        for bit in rng.sample(range(8 * BLOCK), 6) + rng.sample(range(8 * 124, 8 * 136), 2):
            (tmp_path / "x.tar").write_bytes(flip(whole, 8 * place + bit))
            good, bad = outcome(tmp_path / "a", tmp_path / "x.tar")
            assert good + bad.total() == NUM, (place, bit, bad)
            assert good >= NUM - 1
            assert set(bad) <= {"damaged_header"}


def test_a_flipped_bit_in_a_tar_of_images_alone_loses_one_image_and_counts_it(tmp_path):
    write_tar(tmp_path / "x.tar", [(key, {"png": parts["png"]}) for key, parts in pairs()])
    whole, rng = (tmp_path / "x.tar").read_bytes(), random.Random(1)
    for place in headers(whole):
        for bit in rng.sample(range(8 * BLOCK), 8):
            (tmp_path / "x.tar").write_bytes(flip(whole, 8 * place + bit))
            good, bad = outcome(tmp_path / "a", tmp_path / "x.tar", Images)
            assert (good, bad.total()) in [(NUM - 1, 1), (NUM, 0)], (place, bit, bad)


@pytest.mark.parametrize("size", [512, 4608, 10_000])
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_a_destroyed_range_of_a_tar_is_counted_by_its_size(tmp_path, size, fill):
    write_tar(tmp_path / "x.tar", pairs(40))
    whole = (tmp_path / "x.tar").read_bytes()
    for place in headers(whole)[14:18]:  # not up to a multiple of 10,240 bytes, as at the end of a tar
        (tmp_path / "x.tar").write_bytes(whole[:place] + size * fill + whole[place + size :])
        good, bad = outcome(tmp_path / "a", tmp_path / "x.tar")
        assert good + bad.total() == 40, (place, bad)


@pytest.mark.parametrize("change", [-1, 2])
def test_bytes_removed_or_inserted_in_a_tar_lose_the_samples_behind_them_and_count_them(tmp_path, change):
    # Behind the last header but one, as much space is left as that member would fill with one digit of its size wrong.
    sizes = [1236, 882, 460, 1236, 876, 446, 1236, 865, 462, 1236, 874, 458]
    rows = [(f"{n:06d}", {"png": members(n)["png"].ljust(size, b"\0")}) for n, size in enumerate(sizes)]
    write_tar(tmp_path / "x.tar", rows)
    whole = (tmp_path / "x.tar").read_bytes()
    for place in headers(whole)[1:]:
        for at in (place + BLOCK - 1, place + BLOCK + 400):  # in the header, in the image
            (tmp_path / "x.tar").write_bytes(whole[:at] + max(0, change) * b"x" + whole[at + max(0, -change) :])
            good, bad = outcome(tmp_path / "a", tmp_path / "x.tar", Images)
            assert good + bad.total() >= NUM, (at, bad)


def test_a_damaged_extended_header_loses_one_sample(tmp_path):
    keys = [f"{'long' * 40}-{n}" for n in range(NUM)]
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
            for n, key in enumerate(keys):
                for extension, data in members(n).items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        whole = (tmp_path / "x.tar").read_bytes()
        for place in headers(whole)[6:10]:
            for header in (place, place + 2 * BLOCK):
                (tmp_path / "x.tar").write_bytes(flip(whole, 8 * header + 8 * 150))
                good, bad = outcome(tmp_path / "a", tmp_path / "x.tar")
                assert good >= NUM - 1
                assert good + bad.total() >= NUM


def test_a_shard_that_breaks_off_counts_at_least_one_sample(tmp_path):
    write_tar(tmp_path / "x.tar", pairs())
    whole = (tmp_path / "x.tar").read_bytes()
    for cut in [*headers(whole)[4:8], 20_000, 9_999]:
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        good, bad = outcome(tmp_path / "a", tmp_path / "x.tar")
        assert bad == {"truncated_shard": 1}
        assert good < NUM
        (tmp_path / "x_stats.json").write_text(json.dumps({"successes": NUM}))
        good, bad = outcome(tmp_path / "b", tmp_path / "x.tar")
        assert good + bad["truncated_shard"] == NUM
        with pytest.raises(UserError, match="samples are bad: truncated_shard"):
            Pairs(kind="data.pairs", name="pool", path=f"{tmp_path}/x.tar").run(context(tmp_path / "c"))
        (tmp_path / "x_stats.json").unlink()


def test_names_with_dots_repeated_keys_and_unknown_extensions_are_counted(tmp_path):
    rows = [("a", members(0)), ("b", members(1)), ("b", members(2)), ("b", members(3))]
    rows += [(f"photo.{n}", members(n)) for n in range(5)]
    rows += [("c", {"heic": b"?", "meta": b"?"}), ("d", {"heic": b"?", "txt": b"caption"})]
    write_tar(tmp_path / "x.tar", [*rows, ("README", {"md": b"about"})])
    good, bad = outcome(tmp_path / "a", tmp_path / "x.tar")
    assert good == 2
    assert bad == {"duplicate_key": 2, "unknown_extension": 7}


def test_further_members_of_good_samples_are_not_counted(tmp_path):
    more = {"seg.png": encoded(9), "npy": b"?", "jpg": encoded(8, "JPEG")}
    write_tar(tmp_path / "x.tar", [(key, {**parts, **more}) for key, parts in pairs()])
    assert outcome(tmp_path / "a", tmp_path / "x.tar") == (NUM, {})


def test_a_sparse_member_has_its_own_reason(tmp_path):
    (tmp_path / "s").mkdir()
    for n in range(4):
        (tmp_path / f"s/{n}.txt").write_text("caption")
        (tmp_path / f"s/{n}.png").write_bytes(encoded(n))
    with (tmp_path / "s/2.png").open("r+b") as stream:
        stream.truncate(1 << 20)
    assert os.system(f"tar -C {tmp_path}/s --sparse -cf {tmp_path}/x.tar . 2>/dev/null") == 0
    good, bad = outcome(tmp_path / "a", tmp_path / "x.tar")
    assert (good, bad) == (3, {"sparse_member": 1})


def test_tars_joined_with_cat_keep_all_samples(tmp_path):
    for n in range(2):
        write_tar(tmp_path / f"{n}.tar", pairs(2 * NUM)[n * NUM : (n + 1) * NUM])
    (tmp_path / "x.tar").write_bytes((tmp_path / "0.tar").read_bytes() + (tmp_path / "1.tar").read_bytes())
    assert outcome(tmp_path / "a", tmp_path / "x.tar") == (2 * NUM, {})


def make_folder(folder: Path, num: int = NUM) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(num):
        (folder / f"{n}.png").write_bytes(encoded(n))
        (folder / f"{n}.txt").write_text(f"caption {n}")
    return folder


def test_folders_count_damaged_missing_and_unknown_files(tmp_path):
    folder = make_folder(tmp_path / "f")
    (folder / "README.txt").write_text("about")
    (folder / "0.png").write_bytes(b"no image")
    (folder / "1.png").unlink()
    (folder / "2.png").rename(folder / "2.heic")
    (folder / "3.txt").unlink()
    (folder / "4.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "5.png").rename(os.fsdecode(os.fsencode(folder) + b"/\xff5.png"))
    (folder / "6.png").unlink()
    (folder / "6.png").symlink_to(folder / "nowhere.png")
    good, bad = outcome(tmp_path / "a", folder)
    assert good == 5
    # The renamed image is a sample that lacks its caption, and its caption one that lacks its image.
    assert bad == {
        "unreadable_image": 1, "missing_image": 3, "unknown_extension": 1, "missing_caption": 2, "wrong_encoding": 1
    }  # fmt: skip
    good, bad = outcome(tmp_path / "b", folder, Images)
    assert (good, bad) == (7, {"unreadable_image": 1, "missing_image": 1, "unknown_extension": 1, "wrong_encoding": 1})


def test_class_folders_count_damaged_and_unknown_files(tmp_path):
    for label in (b"cat", b"d\xf6g"):
        make_folder(tmp_path / "f" / label.decode(errors="surrogateescape"), 4)
    (tmp_path / "f/cat/0.png").rename(tmp_path / "f/cat/0.pog")
    good, bad = outcome(tmp_path / "a", tmp_path / "f", Labeled)
    assert (good, bad) == (3, {"unknown_extension": 1, "wrong_encoding": 4})


def table_of(folder: Path, kind: str) -> Path:
    make_folder(folder)
    for n in range(NUM):  # no flipped bit makes a name another one
        (folder / f"{n}.png").rename(folder / f"{n}{n}{n}.png")
    rows = [{"image": f"{n}{n}{n}.png", "caption": f"caption {n}, and more"} for n in range(NUM)]
    path = folder / f"t.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["image", "caption"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_flipped_bit_in_a_table_loses_no_row_uncounted(tmp_path, kind):
    path = table_of(tmp_path / "f", kind)
    whole = path.read_bytes()
    start = 0 if kind == "jsonl" else whole.index(b"\n") + 1
    for place in range(start, len(whole), 5):
        path.write_bytes(flip(whole, 8 * place + place % 8))
        good, bad = outcome(tmp_path / "a", path)
        assert good + bad.total() >= NUM, (place, bad)
        assert good + bad.total() <= NUM + 1, (place, bad)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_damaged_line_break_loses_both_rows_and_counts_both(tmp_path, kind):
    path = table_of(tmp_path / "f", kind)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].strip() + b"*"
    path.write_bytes(b"".join(lines))
    good, bad = outcome(tmp_path / "a", path)
    assert (good, bad.total()) == (NUM - 2, 2)


def test_a_stray_quotation_mark_loses_one_row(tmp_path):
    folder = make_folder(tmp_path / "f")
    lines = [f"{n}.png,caption {n}" for n in range(NUM)]
    for place, marked in ((3, '3.png,"caption 3'), (NUM - 1, f'{NUM - 1}.png,"caption'), (5, '"5.png,caption 5')):
        changed = [marked if n == place else line for n, line in enumerate(lines)]
        (folder / "t.csv").write_text("\n".join(["image,caption", *changed]))
        good, bad = outcome(tmp_path / f"a{place}", folder / "t.csv")
        assert good + bad.total() == NUM
        assert good >= NUM - 1


def test_a_caption_of_several_lines_is_one_caption(tmp_path):
    make_folder(tmp_path / "f")
    (tmp_path / "f/t.csv").write_text('image,caption\n0.png,"one, two\nthree, four"\n1.png,five\n')
    source, bad = indexed(tmp_path / "a", tmp_path / "f/t.csv")
    assert not bad
    assert source[0].texts == {"en": ["one, two\nthree, four"]}


def test_a_damaged_line_break_of_a_list_of_images_loses_both_and_counts_both(tmp_path):
    folder = make_folder(tmp_path / "f")
    for mark in b"*J\x0b\x1a":
        lines = [f"{n}.png".encode() for n in range(NUM)]
        (folder / "list.txt").write_bytes(b"\n".join(lines[:4]) + bytes([mark]) + b"\n".join(lines[4:]))
        assert outcome(tmp_path / "a", folder / "list.txt", Images) == (
            NUM - 2,
            {"missing_image": 1, "unreadable_row": 1},
        )
    (folder / "a.jpg.png").write_bytes(encoded(1))
    (folder / "list.txt").write_text("0.png\na.jpg.png\n1.png")
    good, bad = outcome(tmp_path / "b", folder / "list.txt", Images)
    assert (good, bad) == (3, {})


def test_a_label_that_is_no_unicode_or_no_text_is_one_bad_sample(tmp_path):
    folder = make_folder(tmp_path / "f")
    (folder / "t.csv").write_bytes(b"image,label\n0.png,cat\n1.png,d\xf6g\n2.png,fox\n")
    assert outcome(tmp_path / "a", folder / "t.csv", Labeled, label_key="label") == (2, {"missing_label": 1})
    rows = [{"image": f"{n}.png", "label": label} for n, label in enumerate(["cat", ["dog"], "fox"])]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert outcome(tmp_path / "b", folder / "t.jsonl", Labeled, label_key="label") == (2, {"missing_label": 1})


def test_tables_with_carriage_returns_alone_are_read(tmp_path):
    for kind in ("csv", "tsv", "jsonl"):
        path = table_of(tmp_path / kind, kind)
        path.write_bytes(path.read_bytes().replace(b"\r", b"").replace(b"\n", b"\r"))
        assert outcome(tmp_path / f"a-{kind}", path) == (NUM, {})


@pytest.mark.parametrize("root", [None, "/"])
def test_names_that_are_no_paths_are_bad_samples(tmp_path, root):
    folder = make_folder(tmp_path / "f")
    names = ["0.png", "a\0b.png", "https://127.0.0.1:9/x.png", "nosuch://x/y.png", "\ud83d.png", "x" * 5000 + ".png"]
    names = [f"{folder}/{name}" if root and "://" not in name else name for name in names]
    lines = [json.dumps({"image": name, "caption": "x"}) for name in names]
    (folder / "t.jsonl").write_text("\n".join(lines))
    good, bad = outcome(tmp_path / "a", folder / "t.jsonl", **({"image_root": root} if root else {}))
    assert good == 1
    expected = {"missing_image": 2, "unsafe_path": 1, "unreachable": 1}
    assert bad == {**(expected if root else {"missing_image": 1, "unsafe_path": 3}), "wrong_encoding": 1}


def test_a_name_that_is_no_utf_8_in_a_table_is_one_bad_sample(tmp_path):
    folder = make_folder(tmp_path / "f")
    (folder / "t.csv").write_bytes(b"image,caption\n0.png,x\n\xff.png,y\n1.png,z\n")
    assert outcome(tmp_path / "a", folder / "t.csv") == (2, {"wrong_encoding": 1})


def damage_group(path: Path, group: int) -> None:
    metadata = pq.ParquetFile(path).metadata.row_group(group)
    data = bytearray(path.read_bytes())
    for column in range(metadata.num_columns):
        chunk = metadata.column(column)
        place = chunk.dictionary_page_offset or chunk.data_page_offset
        data[place : place + 60] = bytes([255]) * 60
    path.write_bytes(data)


def test_a_column_whose_name_is_no_utf_8_is_one_line(tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"größe": [1]}), file)
    file.write_bytes(file.read_bytes().replace("größe".encode(), "größen".encode("latin-1").ljust(7)))
    with pytest.raises(UserError, match=r"x\.parquet: not readable as parquet"):
        open_parquet(str(file))


def test_a_damaged_row_group_leaves_the_others_readable(tmp_path):
    table = pa.table({"image": [encoded(n) for n in range(NUM)], "caption": [f"caption {n}" for n in range(NUM)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    damage_group(tmp_path / "x.parquet", 1)
    for stage in (Pairs, Images):
        good, bad = outcome(tmp_path / stage.__name__, tmp_path / "x.parquet", stage)
        assert (good, bad) == (NUM - 3, {"unreadable_row": 3})
    source, _ = indexed(tmp_path / "c", tmp_path / "x.parquet")
    with pytest.raises(BadSample, match=r"x\.parquet: row group 1: unreadable_row"):
        source[4]
    reported: list[tuple[str, str]] = []
    texts = source.texts_of_shard(0, lambda *bad: reported.append(bad))
    assert len(texts) == NUM - 3
    assert reported == [("unreadable_row", f"{tmp_path}/x.parquet: row group 1")] * 3


def test_a_damaged_row_group_of_a_table_of_paths_is_counted(tmp_path):
    folder = make_folder(tmp_path / "f")
    rows = [{"image": f"{n}.png", "caption": f"caption {n}"} for n in range(NUM)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet", row_group_size=4)
    damage_group(folder / "t.parquet", 1)
    assert outcome(tmp_path / "a", folder / "t.parquet") == (NUM - 4, {"unreadable_row": 4})


def test_a_damaged_row_group_of_choices_is_counted(tmp_path):
    rows = [
        {"image_0": {"bytes": encoded(n)}, "image_1": {"bytes": encoded(n + 1)}, "caption_0": "a b", "caption_1": "b a"}
        for n in range(NUM)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=4)
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    place = metadata.dictionary_page_offset or metadata.data_page_offset
    data[place : place + 60] = bytes([255]) * 60
    (tmp_path / "x.parquet").write_bytes(data)
    bad: list[tuple[str, str]] = []
    found = list(read_choices(f"{tmp_path}/x.parquet", lambda *one: bad.append(one)))
    assert len(found) == NUM - 4
    assert bad == [("unreadable_row", f"{tmp_path}/x.parquet: row group 1")] * 4


def test_a_damaged_line_break_between_choices_loses_both_and_counts_both(tmp_path):
    folder = make_folder(tmp_path / "f")
    own = [{"images": [f"{n}.png"], "statements": ["x", "y"], "truth": [0, -1]} for n in range(NUM)]
    published = [
        {"image_0": f"{n}.png", "image_1": f"{n}.png", "caption_0": "a b", "caption_1": "b a"} for n in range(NUM)
    ]
    for rows in (own, published):
        lines = [json.dumps(row) for row in rows]
        (folder / "c.jsonl").write_text("\n".join(lines[:4]) + "*" + "\n".join(lines[4:]))
        bad: list[tuple[str, str]] = []
        found = list(read_choices(f"{folder}/c.jsonl", lambda *one, bad=bad: bad.append(one), str(folder)))
        assert len(found) == NUM - 2
        assert [reason for reason, _ in bad] == ["broken_json"] * 2


def test_a_choice_with_half_a_surrogate_pair_is_counted(tmp_path):
    folder = make_folder(tmp_path / "f")
    own = {"images": ["0.png"], "statements": ["x", "y"], "truth": [0, -1]}
    published = {"image_0": "0.png", "image_1": "0.png", "caption_0": "a b", "caption_1": "b a"}
    for row, changes in ((own, ("key", "pattern")), (published, ("id", "collapsed_tag", "caption_1"))):
        rows = [row, *({**row, name: "\ud800"} for name in changes)]
        (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
        bad: list[tuple[str, str]] = []
        found = list(read_choices(f"{folder}/c.jsonl", lambda *one, bad=bad: bad.append(one), str(folder)))
        assert len(found) == 1
        assert [reason for reason, _ in bad] == ["wrong_encoding"] * len(changes)
