"""Streams of whole tars: the order is a function of the seed alone, and each byte is requested once and ahead."""

from __future__ import annotations

import itertools
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from data_samples import EN, context, make_pool, members, number_of
from range_server import serving
from vfm.base import UserError
from vfm.data import Sample, Shard, TarStream, TrainingData, open_stream, write_index, write_tar
from vfm.data.index.source import Source
from vfm.data.streaming import arriving
from vfm.data.streaming.arriving import Arriving
from vfm.data.streaming.lane import Lane, OpenGroup, Tars
from vfm.data.streaming.lanes import FIRST_ROWS, GROUP, ROWS, Group, Lanes
from vfm.data.streaming.stages import Stream
from vfm.data.streaming.streamed_tar import StreamedTar
from vfm.data.tar.packed_offsets import pack
from vfm.data.tar.scan import scan_tar
from vfm.data.tar.webdataset import scan_shard, slots_of
from vfm.storage import remote
from vfm.storage.remote_spans import Span

SIZES = [12, 3, 150, 20, 1, 70, 9, 64, 65, 33, 2, 128, 7, 40, 90, 5, 11, 17, 30]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0,) * 6)
    monkeypatch.setattr(arriving, "PART", 1 << 13)


def listed(folder: Path, paths: list[str], **fields: Any) -> Path:
    """Write a list of tars without counting their samples."""
    write_index(folder, [Shard.of(path, 0) for path in paths], EN.model_copy(update=fields))
    return folder


def tars(folder: Path, sizes: list[int] = SIZES) -> list[str]:
    make_pool(folder, sizes)
    return [f"{number:03d}.tar" for number in range(len(sizes))]


def keys(stream: TarStream, start: int, stop: int, **fields: Any) -> list[list[str]]:
    settings = {"seed": 3, "global_batch_size": 24, "max_bad_fraction": 0.9, **fields}
    rank = {name: settings.pop(name) for name in ("rank", "world_size", "micro_batch_size") if name in settings}
    data = TrainingData(stream, number_of, **settings)
    steps = data.steps(start, stop, **rank)
    return [[key for batch in step for key in batch.keys] for step in steps]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=60)
def test_each_epoch_has_every_tar_once_over_all_lanes(num_shards: int, most: int, seed: int) -> None:
    lanes = Lanes(num_shards, most, 4, seed)
    groups = [lanes.group(number % lanes.number, number // lanes.number) for number in range(3 * lanes.groups_in_epoch)]
    seen = Counter((group.epoch, shard) for group in groups for shard in group.shards)
    assert seen == Counter(itertools.product(range(3), range(num_shards)))
    assert all(len(group.shards) <= GROUP for group in groups)
    assert lanes.number == min(most, num_shards), "each lane has tars of its own"


@given(st.integers(1, 9), st.integers(1, 7))
def test_every_position_of_every_lane_is_given_once(most: int, run: int) -> None:
    lanes = Lanes(100, most, run, 0)
    places = [lanes.place(position) for position in range(4 * run * lanes.number)]
    assert sorted(places) == [(lane, position) for lane in range(lanes.number) for position in range(4 * run)]


@pytest.mark.parametrize(
    ("number", "processes", "workers", "micro_batch", "per_step", "readers"),
    [
        (8, 1, 1, 4, 1, 1),
        (8, 2, 4, 4, 1, 1),
        (8, 1, 3, 4, 1, 3),
        (12, 1, 3, 4, 1, 1),
        (8, 1, 8, 8, 1, 2),
        (16, 1, 8, 8, 1, 1),
        (4, 1, 2, 2, 1, 2),
        (8, 2, 2, 4, 2, 1),
        (500, 250, 2, 4, 1, 1),
    ],
)
def test_lanes_are_read_once_if_they_are_a_multiple_of_the_workers(
    number: int, processes: int, workers: int, micro_batch: int, per_step: int, readers: int
) -> None:
    assert Lanes(1000, number, 4, 0).readers(processes, workers, micro_batch, per_step) == readers


def test_a_stream_has_the_rows_of_a_scan(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{n}", members(n, txt=None if n % 7 == 3 else b"x")) for n in range(100)])
    with (tmp_path / "x.tar").open("r+b") as file:  # a damaged header
        file.seek(512 * 40)
        file.write(b"\xff" * 100)
    tar, scan = streamed(tmp_path / "x.tar"), scan_tar(str(tmp_path / "x.tar"), ["image", "json", "txt"], ["png"])
    assert tar.advance(1 << 31) == len(scan.keys)
    assert [tar.key(row) for row in range(len(tar))] == scan.keys
    assert np.array_equal([tar.places(row) for row in range(len(tar))], scan.places)
    assert (tuple(sorted(tar.damaged)), tuple(tar.lost), tar.complete) == (scan.damaged, scan.lost, scan.complete)
    assert len(scan.lost) + len(scan.damaged) > 0


def streamed(path: Path | str) -> StreamedTar:
    return StreamedTar(Shard.of(str(path), 0), EN)


def test_an_epoch_is_every_sample_once(tmp_path: Path) -> None:
    paths = [f"{tmp_path}/t/{name}" for name in tars(tmp_path / "t")]
    stream = TarStream(listed(tmp_path / "list", paths), 1, 24)
    seen = list(itertools.chain.from_iterable(keys(stream, 0, 2 * sum(SIZES) // 24 + 1)))
    expected = Counter(Source(make_pool(tmp_path / "t", SIZES).path).keys)
    assert Counter(seen[: sum(SIZES)]) == expected == Counter(seen[sum(SIZES) : 2 * sum(SIZES)])
    assert seen[: sum(SIZES)] != seen[sum(SIZES) : 2 * sum(SIZES)]


BROKEN: dict[int, dict[str, bytes | None]] = {5: {"txt": None}, 40: {"png": b"no image"}, 300: {"png": None}}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    make_pool(folder, SIZES, broken=BROKEN)
    return folder


def local(pool: Path, folder: Path, lanes: int = 2, run: int = 6) -> TarStream:
    return TarStream(listed(folder, [f"{pool}/{number:03d}.tar" for number in range(len(SIZES))]), lanes, run)


@pytest.mark.parametrize("start", [1, 2, 9, 20, 33, 50, 77])
@pytest.mark.parametrize("kept", [True, False])
def test_a_stream_that_is_entered_anywhere_goes_on_with_the_same_samples(
    pool: Path, tmp_path: Path, start: int, kept: bool
) -> None:
    whole = keys(local(pool, tmp_path / "a"), 0, 80)
    offsets = tmp_path / "a/offsets"
    assert len(list(offsets.iterdir())) == len(SIZES), "each tar that was read to its end"
    if not kept:
        shutil.rmtree(offsets)
    assert keys(TarStream(tmp_path / "a", 2, 6), start, 80) == whole[start:]
    assert keys(local(pool, tmp_path / "b"), 0, 80, seed=4) != whole


def test_the_offsets_that_are_kept_are_those_of_an_index(pool: Path, tmp_path: Path) -> None:
    keys(local(pool, tmp_path / "a"), 0, 40)
    for number in range(len(SIZES)):
        scanned = pack(scan_shard(f"{pool}/{number:03d}.tar", EN), slots_of(EN))
        assert (tmp_path / f"a/offsets/{number:06d}.offsets").read_bytes() == scanned


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_micro_batches_and_workers_change_no_sample(pool: Path, tmp_path: Path, workers: int) -> None:
    stream = local(pool, tmp_path / "a")
    whole = keys(stream, 0, 30)
    ranks = [
        keys(local(pool, tmp_path / "b"), 0, 30, rank=rank, world_size=2, micro_batch_size=3, workers=workers)
        for rank in range(2)
    ]
    assert [first + second for first, second in zip(*ranks, strict=True)] == whole


def test_bad_samples_are_counted_and_replaced_by_their_numbers(pool: Path, tmp_path: Path) -> None:
    def bad(stream: TarStream, start: int) -> list[Any]:
        data = TrainingData(stream, number_of, seed=3, global_batch_size=24, max_bad_fraction=0.9)
        return [(step[0].keys, step[0].bad) for step in data.steps(start, 34)]

    whole = bad(local(pool, tmp_path / "a"), 0)
    found = [(reason, where.rpartition(":")[2]) for _, bad in whole for reason, where in bad]
    expected = [("missing_caption", "000005"), ("unreadable_image", "000040"), ("missing_image", "000300")]
    assert set(found) == set(expected)
    assert bad(local(pool, tmp_path / "b"), 11) == whole[11:]
    assert all(len(names) == 24 for names, _ in whole)


def far(server: Any, folder: Path, lanes: int = 2, run: int = 6) -> TarStream:
    return TarStream(listed(folder, [f"{server.url}/{n:03d}.tar" for n in range(len(SIZES))]), lanes, run)


def test_bytes_come_once_and_the_next_group_before_it_is_needed(pool: Path, tmp_path: Path) -> None:
    near = keys(local(pool, tmp_path / "near"), 0, 20)
    with serving(pool) as server:
        stream = far(server, tmp_path / "far")
        assert server.bytes_sent == 0, "a list needs no bytes"
        assert keys(stream, 0, 20) == near
        total = sum(file.stat().st_size for file in pool.glob("*.tar"))
        assert len(server.asked) == len(SIZES)
        assert server.bytes_sent < 2 * total
        ranges = total // arriving.PART + len(SIZES)
        assert server.requests["GET"] <= 2 * ranges
        group = OpenGroup(Group(0, 0, (2, 11)), Lanes(2, 1, 6, 0), {n: stream._open(n) for n in (2, 11)})
        assert [tar.arriving._next for tar in group.tars.values()] == [1, 1], "both are requested at once"


def test_the_next_block_is_requested_before_this_one_ends(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in tars(tmp_path, [400] * GROUP)]
    opened: dict[int, StreamedTar] = {}

    def opening(number: int) -> StreamedTar:
        return opened.setdefault(number, streamed(paths[number]))

    lane = Lane(0, Lanes(GROUP, 1, 128, 0), Tars(opening, lambda number: 400, lambda number, tar: None))
    block = FIRST_ROWS * GROUP
    for position in range(block):
        lane[position]
    for number, tar in opened.items():
        places = scan_shard(str(paths[number]), EN).places
        expected = places[FIRST_ROWS + ROWS - 1, 0, 0]
        assert expected < tar.arriving._next * arriving.PART < expected + (tar.size - expected) / 4


def test_a_twentieth_of_failing_requests_changes_nothing(pool: Path, tmp_path: Path) -> None:
    near = keys(local(pool, tmp_path / "near"), 0, 20)
    faults = itertools.cycle(["status 500", "short", "status 404"])
    draw = np.random.default_rng(0)

    def fault(path: str, count: int) -> str | None:
        return next(faults) if path.endswith(".tar") and draw.random() < 0.05 else None

    with serving(pool) as server:
        stream = far(server, tmp_path / "far")
        server.fault = fault
        assert keys(stream, 0, 20) == near


def test_a_tar_that_changes_between_epochs_is_named(tmp_path: Path) -> None:
    make_pool(tmp_path / "t", [12, 40, 30])
    with serving(tmp_path / "t") as server:
        paths = [f"{server.url}/{n:03d}.tar" for n in range(3)]
        stream = TarStream(listed(tmp_path / "list", paths), 1, 6)
        assert len(keys(stream, 0, 3)) == 3
        os.utime(tmp_path / "t/001.tar", ns=(1, 1))  # another ETag
        with pytest.raises(UserError, match=r"/001\.tar: the file has changed since it was indexed; the next run"):
            keys(stream, 3, 9)


def test_a_tar_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    make_pool(tmp_path / "t", [12, 40, 30])
    with serving(tmp_path / "t") as server:
        paths = [f"{server.url}/{n:03d}.tar" for n in range(3)]
        stream = TarStream(listed(tmp_path / "list", paths), 1, 6)
        server.fault = lambda path, count: "status 500" if path == "002.tar" else None
        with pytest.raises(UserError, match=r"/002\.tar: status 500; the next run continues"):
            keys(stream, 0, 9)


def test_a_stream_holds_a_few_parts_of_a_tar(tmp_path: Path) -> None:
    (path,) = tars(tmp_path, [400])
    tar = streamed(tmp_path / path)
    group, most = OpenGroup(Group(0, 0, (0,)), Lanes(1, 1, 6, 0), {0: tar}), 0
    while group.block():
        most = max(most, len(tar.arriving._parts))
    block = ROWS * (tmp_path / path).stat().st_size / 400
    assert most <= block / arriving.PART + 3 < tar.size / arriving.PART / 2


def test_a_jump_over_a_large_member_skips_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(os.urandom(40 * arriving.PART))
    data = (tmp_path / "x.bin").read_bytes()
    stream = Arriving(Span(str(tmp_path / "x.bin"), 0, len(data), len(data)))
    for place in (0, 5, 30 * arriving.PART - 3, 3 * arriving.PART, len(data) - 4):
        stream.seek(place)
        assert stream.read(10) == data[place : place + 10]
    assert stream.between(100, 5 * arriving.PART) == data[100 : 5 * arriving.PART]
    assert stream.read() == b""


def test_empty_tars_end_with_a_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w"):
            pass
    stream = TarStream(listed(tmp_path / "list", [f"{tmp_path}/{name}.tar" for name in ("a", "b")]), 1, 6)
    with pytest.raises(UserError, match="the stream has no samples: 2 tars are empty"):
        keys(stream, 0, 1)


def test_only_tars_can_be_streamed(tmp_path: Path) -> None:
    write_index(tmp_path, [], EN)
    with pytest.raises(UserError, match="expected tars to stream, got no file"):
        TarStream(tmp_path, 1, 6)


def test_the_stage_lists_tars_over_http_without_reading_their_samples(pool: Path, tmp_path: Path) -> None:
    with serving(pool) as server:
        stage = Stream(kind="data.stream", name="tars", path=f"{server.url}/{{000..018}}.tar", lanes=2, lane_samples=6)
        stage.preflight(None)  # type: ignore[arg-type]
        gets = server.requests["GET"]
        tars = stage.run(context(tmp_path / "list"))
        assert server.requests["GET"] - gets < len(SIZES), "no tar is read, as it would need a request each"
        data = TrainingData(open_stream(tars), size_of, seed=3, global_batch_size=24)  # type: ignore[arg-type]
        names = [batch.keys for (batch,) in data.steps(0, 15)]
    near = TrainingData(local(pool, tmp_path / "near"), size_of, seed=3, global_batch_size=24)
    assert [[name.partition("/")[2] for name in step] for step in names] == [step[0].keys for step in near.steps(0, 15)]
    assert {name.partition("/")[0] for step in names for name in step} <= {f"{number:03d}" for number in range(19)}


def size_of(sample: Sample, draw: object) -> Tensor:
    return torch.tensor(len(sample.image))


def test_a_tar_that_does_not_exist_is_one_line(pool: Path, tmp_path: Path) -> None:
    with serving(pool) as server:
        stage = Stream(kind="data.stream", name="tars", path=f"{server.url}/{{000..019}}.tar")
        with pytest.raises(UserError, match=r"/019\.tar: no such file"):
            stage.run(context(tmp_path / "list"))
