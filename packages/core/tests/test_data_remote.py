"""Remote tars: the same samples as from the disk, in few requests, with all faults retried or counted."""

import fcntl
import gzip
import itertools
import json
import os
import pickle
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data_samples import context, encoded, make_pool, members, number_of
from eval_world import NAMES, png
from range_server import serving
from vfm.base import UserError
from vfm.data import BadSample, Mixture, Source, TrainingData, open_dataset, write_tar
from vfm.data.layouts.layout import find_layout
from vfm.data.pairs.stages import Pairs
from vfm.data.reading.byte_ranges import MAX_GAP, RangeStream, merged
from vfm.data.reading.shard_cache import CacheSettings, ShardCache
from vfm.data.tar.members import TarMembers, plain_member
from vfm.data.tar.packed_offsets import OffsetsWriter, PackedOffsets, PackedScan, pack
from vfm.data.tar.scan import MISSING, SPARSE, TarScan, scan_tar
from vfm.flow.recognition.formats import recognise
from vfm.storage import remote
from vfm.storage.remote import read_spans
from vfm.storage.remote_fingerprints import remote_fingerprints
from vfm.storage.remote_spans import Span

SLOTS = ["image", "json", "txt"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(remote, "TIMEOUT", 2.0)


def index(folder: Path, path: str, **fields) -> Source:
    ctx = context(folder / "artifact")
    return open_dataset(Pairs(kind="data.pairs", name="pool", path=path, **fields).run(ctx))


def batches(source: Source | Mixture, **fields) -> list[tuple[list[str], bytes, list]]:
    data = TrainingData(source, number_of, global_batch_size=16, shuffle_shards=3, max_bad_fraction=0.9, **fields)
    return [(one.keys, one.inputs.image.numpy().tobytes(), one.bad) for step in data.steps(0, 5) for one in step]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_over_http_are_those_from_the_disk(tmp_path, workers):
    make_pool(tmp_path / "t", [12, 3, 9, 20])
    with serving(tmp_path / "t") as server:
        address = f"{server.url}/{{000..003}}.tar"
        far = index(tmp_path / "far", address, runtime={"workers": workers})
        near = index(tmp_path / "near", f"{tmp_path}/t/{{000..003}}.tar")
        assert far.keys == near.keys
        assert far.index.shards[0].mtime != 0, "the mark of the content is kept"
        before = server.requests["GET"]
        assert batches(far) == batches(near)
        assert server.requests["GET"] - before < 5 * 5, "a step takes one request for each run of samples of a shard"
        assert batches(Mixture([far, far], [1, 1])) == batches(Mixture([near, near], [1, 1]))
        texts = far.texts_of_shard(3)
        assert texts.equals(near.texts_of_shard(3))
    assert (tmp_path / "far/artifact/offsets/packed.offsets").is_file()
    assert len(list((tmp_path / "far/artifact/offsets").iterdir())) == 1


def test_a_scan_of_large_members_reads_their_headers_only(tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{n}", {"png": bytes([n]) * 400_000, "txt": b"caption"}) for n in range(40)])
    with serving(tmp_path) as server:
        far = scan_tar(f"{server.url}/x.tar", SLOTS, ["png"])
        assert server.bytes_sent < 600_000, "of 16 MB"
        assert server.requests["GET"] < 50, "one for each sample"
    assert same_scans(far, scan_tar(str(tmp_path / "x.tar"), SLOTS, ["png"]), f"{server.url}/x.tar", tmp_path / "x.tar")


def test_the_bytes_of_small_members_come_in_few_requests(tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{n}", {"png": bytes(3000), "txt": b"caption"}) for n in range(500)])
    with serving(tmp_path) as server:
        scan_tar(f"{server.url}/x.tar", SLOTS, ["png"])
        assert server.requests["GET"] < 12


def same_scans(one: TarScan, other: TarScan, *paths: object) -> bool:
    def lost(scan: TarScan) -> list[tuple[str, str]]:
        return [(reason, re.sub("|".join(map(re.escape, map(str, paths))), "", where)) for reason, where in scan.lost]

    assert (one.keys, one.complete, one.damaged) == (other.keys, other.complete, other.damaged)
    assert lost(one) == lost(other)
    return bool((one.places == other.places).all())


def from_file(file: Path):
    data = file.read_bytes()
    return lambda spans: [data[span.start : span.stop] for span in spans]


@pytest.mark.parametrize("part", range(3))
def test_a_damaged_remote_tar_has_the_members_and_gaps_of_a_local_one(tmp_path, part):
    rng, file = random.Random(part), tmp_path / "x.tar"
    sizes = [rng.choice([10, 3000, 90_000]) for _ in range(12)]
    write_tar(file, [(f"{n}", {"png": rng.randbytes(size), "txt": b"caption"}) for n, size in enumerate(sizes)])
    whole = file.read_bytes()
    for _ in range(25):
        changed = bytearray(whole)
        place = rng.choice(
            [rng.randrange(len(whole)), whole.find(b"ustar", rng.randrange(len(whole))) - rng.randrange(257)]
        )
        changed[max(0, place) : place + rng.choice([1, 1, 700])] = rng.choice([b"", b"\xff", bytes(512)])
        file.write_bytes(changed[: rng.choice([len(changed), rng.randrange(len(changed))])])
        stream = RangeStream("x", file.stat().st_size, from_file(file))
        try:
            with file.open("rb") as local:
                near = list(map(shown, TarMembers(local, "x")))
        except UserError as error:
            with pytest.raises(UserError, match=re.escape(str(error))):
                list(TarMembers(stream, "x"))
            continue
        assert list(map(shown, TarMembers(stream, "x"))) == near


def shown(found) -> object:
    return found if not hasattr(found, "name") else (found.name, found.offset_data, found.size, found.type)


@given(st.data())
@settings(max_examples=150)
def test_a_plain_header_is_read_as_tarfile_reads_it(data):
    import tarfile

    info = tarfile.TarInfo(
        data.draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60))
    )
    info.size, info.mtime = data.draw(st.integers(0, 2**34)), data.draw(st.integers(0, 2**31))
    info.type = data.draw(st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, b"x"]))
    kind = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    try:
        header = bytearray(info.tobuf(kind, "utf-8")[:512])
    except ValueError:
        return
    if data.draw(st.booleans()):
        header[data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    found = plain_member(bytes(header))
    if found is not None:
        expected = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "backslashreplace")
        assert (found.name, found.size, found.isreg()) == (expected.name, expected.size, expected.isreg())
        assert expected.type in (tarfile.REGTYPE, tarfile.AREGTYPE)


SCANS = st.integers(0, 300).flatmap(
    lambda n: st.tuples(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), min_size=n, max_size=n),
        st.lists(
            st.lists(
                st.one_of(
                    st.sampled_from([(MISSING, -1), (SPARSE, 7)]),
                    st.tuples(st.integers(1, 2**33).map(lambda block: 512 * block), st.integers(0, 2**34)),
                ),
                min_size=3,
                max_size=3,
            ),
            min_size=n,
            max_size=n,
        ),
        st.booleans(),
        st.lists(st.integers(0, max(0, n - 1)), max_size=3),
    )
)


@given(SCANS)
@settings(max_examples=40)
def test_packed_offsets_are_those_that_were_packed(found):
    keys, places, complete, damaged = found
    scan = TarScan(
        keys, np.array(places, np.int64).reshape(-1, 3, 2), complete, tuple(damaged), (("damaged_header", "x"),)
    )
    packed = PackedScan(pack(scan, SLOTS), SLOTS)
    assert (packed.num_rows, packed.keys, packed.complete) == (len(keys), keys, complete)
    assert [packed.key(row) for row in reversed(range(len(keys)))] == keys[::-1]
    assert (packed.damaged, packed.lost) == (frozenset(damaged), scan.lost)
    assert [packed.places(row) for row in range(len(keys))] == places
    with pytest.raises(ValueError, match="slots"):
        PackedScan(pack(scan, SLOTS), SLOTS[:2])


def test_packed_offsets_take_less_than_20_bytes_a_sample(tmp_path):
    rng, place = np.random.default_rng(0), 0
    places = np.zeros((10_000, 3, 2), np.int64)
    for row in places:
        for slot, size in enumerate(rng.integers((20_000, 300, 10), (200_000, 900, 250))):
            row[slot] = place + 512, size
            place += 512 + size + -size % 512
    segment = pack(TarScan([f"{n:09d}" for n in range(10_000)], places, True), SLOTS)
    assert len(segment) / 10_000 < 20
    with OffsetsWriter(tmp_path / "packed") as writer:
        for one in (None, segment, None, segment):
            writer.add(one)
    found = PackedOffsets(tmp_path / "packed")
    assert [found.segment(shard) is None for shard in range(5)] == [True, False, True, False, True]
    assert PackedScan(found.segment(3), SLOTS).places(9_999) == [tuple(pair) for pair in places[-1].tolist()]
    for bit in random.Random(0).sample(range(8 * len(segment)), 40):
        changed = bytearray(segment)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            PackedScan(bytes(changed), SLOTS)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**6), st.integers(0, 10**5)), max_size=30))
def test_merged_spans_cover_the_given_ones_and_are_far_apart(given_spans):
    spans = [Span(path, start, start + size) for path, start, size in given_spans]
    found = merged(spans)
    assert all(any(m.path == s.path and m.start <= s.start and s.stop <= m.stop for m in found) for s in spans)
    for one, other in itertools.pairwise(found):
        assert one.path < other.path or other.start - one.stop > MAX_GAP


FAULTS = ["status 500", "status 503", "short", "hang", "status 404"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    make_pool(tmp_path / "t", [12, 3])
    with serving(tmp_path / "t") as server:
        far = index(tmp_path / "far", f"{server.url}/{{000..001}}.tar")
        server.asked.clear()
        server.fault = lambda path, count: fault if path.endswith(".tar") and count % 2 else None
        assert batches(far) == batches(index(tmp_path / "near", f"{tmp_path}/t"))


@pytest.mark.parametrize("fault", [*FAULTS, "no ranges"])
def test_a_fault_that_stays_is_counted_and_named(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    make_pool(tmp_path / "t", [12, 3])
    with serving(tmp_path / "t") as server:
        far = index(tmp_path / "far", f"{server.url}/{{000..001}}.tar")
        server.fault = lambda path, count: fault if path == "001.tar" else None
        with pytest.raises(BadSample, match="unreachable") as caught:
            far[12]
        assert caught.value.where == f"{server.url}/001.tar:000012"
        bad = Counter(reason for _, _, bad in batches(far) for reason, _ in bad)
        assert set(bad) == {"unreachable"}
        with pytest.raises(UserError, match=r"001\.tar"):
            index(tmp_path / "again", f"{server.url}/{{000..001}}.tar")


def test_a_file_whose_last_try_failed_is_tried_once_until_it_is_read_again(tmp_path):
    (tmp_path / "x.tar").write_bytes(bytes(1000))
    with serving(tmp_path, fault=lambda path, count: "status 500") as server:
        span, asked = Span(f"{server.url}/x.tar", 0, 10), []
        for fault in ("status 500", "status 500", None, "status 500"):
            server.asked.clear()
            server.fault = lambda path, count, fault=fault: fault
            read_spans([span])
            asked.append(server.asked["x.tar"])
    assert asked == [4, 1, 1, 4]


def test_asking_for_a_file_does_not_read_it(tmp_path):
    (tmp_path / "x.tar").write_bytes(bytes(3_000_000))
    (tmp_path / "empty.tar").write_bytes(b"")
    with serving(tmp_path, fault=lambda path, count: "no ranges") as server:
        addresses = [f"{server.url}/{name}.tar" for name in ("x", "empty", "none")]
        assert remote.exist(addresses) == [True, True, False]
        assert server.bytes_sent < 1000
        server.fault = lambda path, count: "status 503"
        with pytest.raises(UserError, match=r"x\.tar: status 503"):
            remote.exist(addresses)


@pytest.mark.parametrize("path", ["folder", "{000..001}*.tar"])
def test_a_server_that_is_away_is_named_for_folders_and_patterns(tmp_path, path):
    with pytest.raises(UserError, match=r"http://me:\*\*\*@127\.0\.0\.1:9/.*: no connection"):
        index(tmp_path, f"http://me:hunter2@127.0.0.1:9/{path}", format="webdataset")


@pytest.mark.parametrize("address", ["http:///x.tar", "http://127.0.0.1:port/x.tar"])
def test_an_address_that_is_none_is_refused_at_once(tmp_path, address):
    with pytest.raises(UserError, match="not a valid address"):
        index(tmp_path, address)


def test_a_signed_address_of_a_tar_is_read_with_its_format(tmp_path, monkeypatch):
    make_pool(tmp_path / "t", [12])
    with serving(tmp_path / "t", needs="Signature=hunter2") as server:
        monkeypatch.setenv("VFM_CREDENTIALS", f"{server.url}/000.tar?X-Amz-Signature=hunter2")
        far = index(tmp_path / "far", f"{server.url}/000.tar", format="webdataset")
        assert far[3].image == encoded(3)
        assert server.bytes_sent < 3 * (tmp_path / "t/000.tar").stat().st_size, "it is no list of a folder, nor a json"
        assert set(server.asked) == {"000.tar"}


def test_a_missing_shard_is_one_line(tmp_path):
    make_pool(tmp_path / "t", [3])
    with serving(tmp_path / "t") as server, pytest.raises(UserError, match=r"/001\.tar: no such file"):
        index(tmp_path, f"{server.url}/{{000..001}}.tar")
    with pytest.raises(UserError, match=r"/000\.tar: no connection"):
        index(tmp_path, "http://127.0.0.1:9/000.tar")


def test_credentials_are_in_no_message(tmp_path):
    make_pool(tmp_path / "t", [12])
    with serving(tmp_path / "t") as server:
        secret = server.url.replace("://", "://me:hunter2@")
        server.fault = lambda path, count: "status 500"
        (found,) = read_spans([Span(f"{secret}/000.tar", 0, 100)])
        assert "hunter2" not in f"{found!s} {found!r} {pickle.loads(pickle.dumps(found))}"
        assert str(found).endswith("/000.tar: status 500")


def test_the_fingerprint_follows_the_content_and_not_the_address(tmp_path):
    (tmp_path / "x.bin").write_bytes(os.urandom(100_000))
    with serving(tmp_path) as server:
        address = f"{server.url}/x.bin"
        first = remote_fingerprints([address])[address]
        assert remote_fingerprints([address.replace("127.0.0.1", "localhost")]).popitem()[1] == first
        os.utime(tmp_path / "x.bin", ns=(1, 1))
        assert remote_fingerprints([address])[address] != first, "another ETag"
        server.etag = None
        by_blocks = remote_fingerprints([address])[address]
        assert by_blocks != first
        (tmp_path / "x.bin").write_bytes(os.urandom(100_000))
        assert remote_fingerprints([address])[address] != by_blocks
        with pytest.raises(UserError, match=r"/none\.bin: not found"):
            remote_fingerprints([f"{server.url}/none.bin"])


def eventually(check) -> None:
    for _ in range(400):
        if check():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_copies_of_shards_are_read_instead_of_the_server_and_stay_within_their_limit(tmp_path):
    make_pool(tmp_path / "t", [12, 12, 12, 12])
    size = (tmp_path / "t/000.tar").stat().st_size
    near = batches(index(tmp_path / "near", f"{tmp_path}/t"))
    settings = CacheSettings(str(tmp_path / "copies"), 2 * size + 100)
    with serving(tmp_path / "t") as server:
        far = index(tmp_path / "far", f"{server.url}/{{000..003}}.tar")
        assert batches(far, cache=settings) == near
        eventually(lambda: len(list((tmp_path / "copies").glob("*.shard"))) == 2)
        server.asked.clear()
        assert batches(far, cache=settings) == near
        assert len(server.asked) == 2, "those without a copy"
        assert len(list((tmp_path / "copies").glob("*.shard"))) == 2, "shards in use are not removed"
        cache, spans = ShardCache(settings), [Span(f"{server.url}/{n:03d}.tar", 0, 512, size, 7) for n in range(4)]
        for copy in (tmp_path / "copies").glob("*.shard"):
            os.utime(copy, (1, 1))
        assert cache.read(spans[0]) is None, "another version has no copy"
        eventually(lambda: cache.read(spans[0]) is not None)
        assert cache.read(spans[0]) == (tmp_path / "t/000.tar").read_bytes()[:512]
        assert len(list((tmp_path / "copies").glob("*.shard"))) == 2


def test_many_writers_of_one_copy_make_one(tmp_path):
    make_pool(tmp_path / "t", [12])
    size = (tmp_path / "t/000.tar").stat().st_size
    with serving(tmp_path / "t", latency=0.05) as server:
        span = Span(f"{server.url}/000.tar", 0, size, size)
        caches = [ShardCache(CacheSettings(str(tmp_path / "copies"), 10 * size)) for _ in range(6)]
        copy = caches[0].place(span)
        copy.parent.mkdir()
        copy.with_suffix(".part").write_bytes(b"left by a process that was killed")
        threads = [threading.Thread(target=one.download, args=(span.path, size, copy)) for one in caches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert copy.read_bytes() == (tmp_path / "t/000.tar").read_bytes()
        assert sorted(one.name for one in copy.parent.iterdir()) == [copy.name, "lock"]
        assert server.requests["GET"] == 1


def test_a_part_that_another_process_removed_is_not_written(tmp_path, monkeypatch):
    """Written without a name, it would put the unfinished part of a third process in the copy's place."""
    make_pool(tmp_path / "t", [12])
    size, real = (tmp_path / "t/000.tar").stat().st_size, fcntl.flock
    with serving(tmp_path / "t") as server:
        cache = ShardCache(CacheSettings(str(tmp_path / "copies"), 10 * size))
        span = Span(f"{server.url}/000.tar", 0, size, size)
        copy = cache.place(span)

        def removed_before(file, how):
            part = copy.with_suffix(".part")
            part.unlink()
            part.write_bytes(b"of a third process")
            monkeypatch.setattr(fcntl, "flock", real)
            real(file, how)

        monkeypatch.setattr(fcntl, "flock", removed_before)
        assert not cache.download(span.path, size, copy)
        assert not copy.exists()
        assert copy.with_suffix(".part").read_bytes() == b"of a third process"
        assert cache.download(span.path, size, copy), "that one has ended"
        assert copy.read_bytes() == (tmp_path / "t/000.tar").read_bytes()


@pytest.mark.parametrize("written", [0, 5])
def test_a_full_disk_leaves_no_copy(tmp_path, monkeypatch, written):
    make_pool(tmp_path / "t", [12])
    size = (tmp_path / "t/000.tar").stat().st_size
    with serving(tmp_path / "t") as server:
        cache = ShardCache(CacheSettings(str(tmp_path / "copies"), 10 * size))
        span = Span(f"{server.url}/000.tar", 0, size, size)
        monkeypatch.setattr(os, "pwrite", lambda file, data, place: written)
        assert not cache.download(span.path, size, cache.place(span))
    assert [one.name for one in (tmp_path / "copies").iterdir()] == ["lock"]


def test_parts_that_end_while_room_is_made_are_no_error(tmp_path, monkeypatch):
    make_pool(tmp_path / "t", [12])
    size = (tmp_path / "t/000.tar").stat().st_size
    (tmp_path / "copies").mkdir()
    other = tmp_path / "copies/other.part"
    monkeypatch.setattr(Path, "iterdir", lambda folder: [other])  # listed, and renamed since
    with serving(tmp_path / "t") as server:
        cache = ShardCache(CacheSettings(str(tmp_path / "copies"), 10 * size))
        span = Span(f"{server.url}/000.tar", 0, size, size)
        assert cache.download(span.path, size, cache.place(span))
    assert not other.exists()


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    make_pool(tmp_path / "t", [12])
    with serving(tmp_path / "t", fault=lambda path, count: "status 500") as server:
        cache = ShardCache(CacheSettings(str(tmp_path / "copies"), 10**9))
        span = Span(f"{server.url}/000.tar", 0, 512, 10_240)
        assert not cache.download(span.path, span.size, cache.place(span))
    assert [one.name for one in (tmp_path / "copies").iterdir()] == ["lock"]


def test_a_local_shard_is_opened_once(tmp_path, monkeypatch):
    source, opened, real = open_dataset(make_pool(tmp_path / "t", [12])), [], os.open
    source[0]
    monkeypatch.setattr(os, "open", lambda path, *more: opened.append(path) or real(path, *more))
    assert [source[n].image for n in range(12)] == [encoded(n) for n in range(12)]
    assert opened == []
    monkeypatch.undo()
    files = len(os.listdir("/proc/self/fd"))
    del source
    assert len(os.listdir("/proc/self/fd")) < files, "and closed with its reader"


def test_bytes_of_a_shard_that_was_cut_off_are_a_bad_sample(tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{n}", members(n)) for n in range(4)])
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:4000])
    with serving(tmp_path) as server:
        ctx = context(tmp_path / "far")
        Pairs(kind="data.pairs", name="pool", path=f"{server.url}/x.tar", max_bad_fraction=1.0).run(ctx)
        near = context(tmp_path / "near")
        Pairs(kind="data.pairs", name="pool", path=f"{tmp_path}/x.tar", max_bad_fraction=1.0).run(near)
        assert ctx.bad == near.bad == {"truncated_shard": 1}


@pytest.mark.parametrize("name", ["pairs.tar", "pairs.csv.gz", "pairs.jsonl"])
def test_an_address_with_a_signature_has_the_format_of_its_file(tmp_path, monkeypatch, name):
    signature = "?X-Amz-Signature=3f&X-Amz-Date=20261130T000000Z"
    samples = [(f"{n}", {"png": png(NAMES[n % len(NAMES)]), "txt": f"caption {n}".encode()}) for n in range(3)]
    write_tar(tmp_path / "pairs.tar", samples)
    rows = [{"url": f"http://127.0.0.1/{n}.png", "caption": f"caption {n}"} for n in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["caption", *(row["caption"] for row in rows)]
    (tmp_path / "pairs.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    with serving(tmp_path) as server:
        plain, signed = (find_layout(f"{server.url}/{name}{end}", "auto", None) for end in ("", signature))
        assert signed.kind == plain.kind
        assert {**recognise(signed.paths[0]), "path": ""} == {**recognise(plain.paths[0]), "path": ""}
        if name.endswith(".tar"):
            monkeypatch.setenv("VFM_CREDENTIALS", f"{server.url}/{name}{signature}")
            far = index(tmp_path / "far", f"{server.url}/{name}")
            assert far.keys == index(tmp_path / "near", str(tmp_path / name)).keys
            assert all("X-Amz" not in key for key in far.keys)
