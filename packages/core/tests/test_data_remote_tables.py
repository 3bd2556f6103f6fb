"""Remote Parquet: the same samples as from the disk, with all faults retried or counted as in remote tars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import context, encoded, members, number_of
from range_server import RangeServer, serving
from vfm.base import UserError
from vfm.data import BadSample, Source, TrainingData, open_dataset, write_tar
from vfm.data.index.column_sampling import column_values
from vfm.data.index.index import copy_of
from vfm.data.pairs.stages import Pairs
from vfm.data.reading import byte_ranges
from vfm.data.reading.byte_ranges import RangeFile
from vfm.interfaces import Event
from vfm.storage import remote

PER_FILE, PER_GROUP = 12, 3
FAULTS = ["status 500", "short", "hang", "status 404"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)


def pad(image: bytes) -> bytes:
    """Append bytes, so that the samples or row groups are not read by one request."""
    return image.ljust(100_000, b"\0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """Serve two tars, and two Parquet files whose row groups are read by requests of their own."""
    (tmp_path / "t").mkdir()
    for file in range(2):
        numbers = range(file * PER_FILE, (file + 1) * PER_FILE)
        rows = []
        for n in numbers:
            caption = b"\xff" if n == PER_FILE else f"caption {n}".encode()  # one row is read as a sample
            row = {"key": str(n), "image": pad(encoded(n)), "caption": caption, "weight": n + 1}
            rows.append({**row, "url": f"http://h.org/{n}"})
        table = pa.Table.from_pylist(rows)
        table = table.set_column(2, "caption", pa.array(table["caption"].to_pylist()).view(pa.string()))
        pq.write_table(table, tmp_path / f"t/{file}.parquet", row_group_size=PER_GROUP, compression="none")
        samples = []
        for n in numbers:
            samples.append((f"{n}", members(n, png=pad(encoded(n)), json=b'{"weight": 1, "url": "http://h.org/x"}')))
        write_tar(tmp_path / f"t/{file}.tar", samples)
    with serving(tmp_path / "t") as running:
        yield running


def index(folder: Path, path: str, **fields: Any) -> Source:
    fields.setdefault("max_bad_fraction", 0.5)
    return open_dataset(Pairs(name="pool", path=path, **fields).run(context(folder)))


def batches(source: Source) -> list[tuple[list[str], bytes]]:
    data = TrainingData(source, number_of, global_batch_size=8, shuffle_shards=2, max_bad_fraction=0.9)
    return [(one.keys, one.inputs.image.numpy().tobytes()) for step in data.steps(0, 3) for one in step]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_table_that_passes_changes_nothing(tmp_path: Path, server: RangeServer, fault: str) -> None:
    expected = batches(index(tmp_path / "near", f"{tmp_path}/t/{{0..1}}.parquet"))
    server.fault = lambda path, count: fault if count % 2 else None
    far = index(tmp_path / "far", f"{server.url}/{{0..1}}.parquet")
    assert batches(far) == expected


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sample_of_a_table_is_unreachable_while_a_fault_stays(
    tmp_path: Path, server: RangeServer, fault: str
) -> None:
    far = index(tmp_path / "far", f"{server.url}/{{0..1}}.parquet")
    assert far.key(PER_FILE) == str(PER_FILE)  # the file is open
    server.fault = lambda path, count: fault if path == "1.parquet" else None
    with pytest.raises(BadSample, match="unreachable") as caught:
        far[2 * PER_FILE - 1]
    assert caught.value.where == f"{server.url}/1.parquet: row group 3"
    server.fault = lambda path, count: None
    assert far[2 * PER_FILE - 1].key == str(2 * PER_FILE - 1)


def test_a_table_that_changed_after_it_was_opened_is_not_read_as_the_old_one(
    tmp_path: Path, server: RangeServer
) -> None:
    far = index(tmp_path / "far", f"{server.url}/0.parquet")
    assert far[0].key == "0"
    table = pq.read_table(tmp_path / "t/0.parquet")
    pq.write_table(table.take(list(reversed(range(PER_FILE)))), tmp_path / "t/0.parquet", row_group_size=PER_GROUP)
    with pytest.raises(BadSample, match="unreachable"):
        far[PER_FILE - 1]


@pytest.mark.parametrize("form", ["tar", "parquet"])
@pytest.mark.parametrize("reached", [0, 1])
def test_texts_urls_and_values_of_a_remote_shard_are_read_whole_or_not_at_all(
    tmp_path: Path, server: RangeServer, form: str, reached: int
) -> None:
    far = index(tmp_path / "far", f"{server.url}/{{0..1}}.{form}")
    weighted = index(tmp_path / "weighted", f"{server.url}/{{0..1}}.{form}", columns=["weight"])
    shard, rows = f"1.{form}", np.arange(PER_FILE)
    reads: dict[str, Callable[[], Any]] = {
        "texts": lambda: far.texts_of_shard(1, lambda reason, where: None),
        "texts by sample": lambda: weighted.texts_of_shard(1, lambda reason, where: None),
        "urls": lambda: far.index.open(1).urls(rows),
        "values": lambda: far.index.open(1).values(rows, ["weight"]),
        "column": lambda: column_values(weighted, "weight"),
    }
    server.asked.clear()
    far.index.open(1)
    opening = server.asked[shard]
    for name, read in reads.items():
        server.asked.clear()
        succeed = opening + reached if reached else 0
        server.fault = lambda path, count: "status 500" if path == shard and count > succeed else None  # noqa: B023
        with pytest.raises(UserError, match=rf"/{shard}: status 500$"):
            read()
        server.fault = lambda path, count: None
        assert len(read()) >= PER_FILE - 1, name


def test_records_of_a_remote_tar_are_read_with_few_requests(tmp_path: Path) -> None:
    samples = [(f"{n}", members(n, png=encoded(n), json=b'{"weight": %d}' % n)) for n in range(PER_FILE)]
    cut = [("x", {"png": encoded(0), "json": b'{"weight": 1'}), ("y", {"png": encoded(0), "txt": b"y"})]
    (tmp_path / "t").mkdir()
    write_tar(tmp_path / "t/0.tar", [*samples, *cut])
    with serving(tmp_path / "t") as server:
        far = index(tmp_path / "far", f"{server.url}/0.tar", verify=False).index.open(0)
        server.asked.clear()
        records = list(far.records(range(PER_FILE + 3), ["weight"]))
        assert records == [{"weight": n} for n in range(PER_FILE)] + [None, {}, None]
        assert server.asked == {"0.tar": 1}
    near = index(tmp_path / "near", f"{tmp_path}/t/0.tar", verify=False).index.open(0)
    assert list(near.records(range(PER_FILE + 3), ["weight"])) == records


def test_a_copy_has_the_row_groups_that_come_and_a_warning_counts_the_others(
    tmp_path: Path, server: RangeServer
) -> None:
    def copied(name: str, fault: Callable[[str, int], str | None]) -> tuple[list[str], list[bool]]:
        """Write copies of both tables, and return the warnings and whether each row is in the copy of the second."""
        events: list[Event] = []
        ctx = context(tmp_path / name)
        ctx.send = events.append
        server.asked.clear()
        server.fault = fault
        address = f"{server.url}/{{0..1}}.parquet"
        pool = Pairs(name="pool", path=address, arrow_copy=True, max_bad_fraction=0.5, verify=False).run(ctx)
        server.fault = lambda path, count: None
        asked.append(server.asked["1.parquet"])
        assert [open_dataset(pool)[n].key for n in (0, 2 * PER_FILE - 1)] == ["0", str(2 * PER_FILE - 1)]
        with pa.ipc.open_stream(copy_of(tmp_path / name, 1)) as reader:
            rows = reader.read_all()["image"].is_valid().to_pylist()
        return [event.data["message"] for event in events if event.type == "warning"], rows

    asked: list[int] = []
    everything = [True] * PER_FILE
    assert copied("whole", lambda path, count: None) == ([], everything)
    assert copied("often", lambda path, count: "status 500" if count % 2 else None) == ([], everything)
    assert asked[1] == 2 * asked[0], "each request was made twice"
    fails = lambda path, count: "status 500" if path == "1.parquet" and count >= asked[0] else None  # noqa: E731
    (warning,), rows = copied("lacking", fails)
    assert warning == (
        "row groups that could not be read and are not in the Arrow copies: 1, such as"
        f" {server.url}/1.parquet: row group 3 ({server.url}/1.parquet: status 500); their samples are read from the"
        " tables"
    )
    assert rows == [True] * (PER_FILE - PER_GROUP) + [False] * PER_GROUP
    assert asked[2] == asked[0] + len(remote.PAUSES), "the last request was made again"


def test_a_large_range_is_requested_in_parts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranges, "PART", 10)
    data, asked = bytes(range(256)), []

    def read(spans: Any) -> list[bytes]:
        asked.append([(span.start, span.stop) for span in spans])
        return [data[span.start : span.stop] for span in spans]

    file = RangeFile("x", len(data), read)  # type: ignore[arg-type]
    file.seek(-31, 2)
    assert file.read(25) == data[225:250]
    assert file.read() == data[250:]
    assert file.read() == b""
    assert asked == [[(225, 235), (235, 245), (245, 250)], [(250, 256)]]
