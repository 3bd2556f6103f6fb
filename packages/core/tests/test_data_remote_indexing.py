"""Remote samples that do not come while a dataset is indexed: counted apart from bad ones, and tried again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import context, encoded
from range_server import RangeServer, serving
from vfm.base import UserError
from vfm.data import write_tar
from vfm.data.annotated.stages import Annotated
from vfm.data.labeled.stages import Tagged
from vfm.data.pairs.stages import Images, Pairs
from vfm.interfaces import Context, Event
from vfm.storage import remote

PER_FILE, TRIES = 6, 3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "PAUSES", (0.0,) * (TRIES - 1))
    yield
    remote._failed.clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """Serve two tars, and an image."""
    record = {"labels": ["dog"], "objects": {"bbox": [[1, 1, 4, 4]], "category": [0]}}
    for file in range(2):
        samples = []
        for n in range(file * PER_FILE, (file + 1) * PER_FILE):
            samples.append((f"{n}", {"png": encoded(n), "txt": b"a dog", "json": json.dumps(record).encode()}))
        (tmp_path / "t").mkdir(exist_ok=True)
        write_tar(tmp_path / f"t/{file}.tar", samples)
    for n in range(2):
        (tmp_path / f"t/{n}.png").write_bytes(encoded(n))
    with serving(tmp_path / "t") as running:
        yield running


def listening(folder: Path) -> tuple[Context, list[Event]]:
    ctx, events = context(folder), []
    ctx.send = events.append
    return ctx, events


def bad_and_warnings(events: list[Event]) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return the reason of each bad sample, and each warning, with whether they may come back."""
    bad, warnings = [], []
    for event in events:
        may_return = event.data.get("lacks_data", False)
        if event.type == "bad_sample":
            bad.append((event.data["reason"], may_return))
        if event.type == "warning":
            warnings.append((event.data["message"], may_return))
    return bad, warnings


def test_samples_of_a_tar_that_do_not_come_are_left_out_with_a_warning_and_tried_again(
    tmp_path: Path, server: RangeServer
) -> None:
    stage = Pairs(name="pool", path=f"{server.url}/{{0..1}}.tar", max_bad_fraction=0.5)
    ctx, asked = context(tmp_path / "whole"), []
    ctx.send = lambda event: asked.append(server.asked["1.tar"]) if event.type == "progress" else None
    assert stage.run(ctx).num_samples == 2 * PER_FILE
    last = asked[-1]  # one request, the last one for the index, reads all samples of a tar
    server.asked.clear()
    server.fault = lambda path, count: "status 500" if path == "1.tar" and count >= last else None
    ctx, events = listening(tmp_path / "lacking")
    pool = stage.run(ctx)
    assert (pool.num_samples, pool.bad_samples) == (PER_FILE, {"unreachable": PER_FILE})
    line = f"6 of 12 samples are left out: they could not be reached, such as {server.url}/1.tar:6"
    assert bad_and_warnings(events) == ([("unreachable", True)] * PER_FILE, [(line, True)])
    strict = stage.model_copy(update={"max_bad_fraction": 0.4})
    server.asked.clear()
    with pytest.raises(UserError, match=r"6 of 12 samples are bad: unreachable \(6\); more than max_bad_fraction"):
        strict.run(context(tmp_path / "strict"))
    server.fault = lambda path, count: None
    ctx, events = listening(tmp_path / "again")
    assert strict.run(ctx).num_samples == 2 * PER_FILE
    assert bad_and_warnings(events) == ([], [])


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_shard_that_cannot_be_opened_is_an_error_with_what_to_do(
    tmp_path: Path, server: RangeServer, form: str
) -> None:
    for file in range(2):
        columns = {"image": [encoded(n) for n in range(2)], "caption": ["a dog"] * 2}
        pq.write_table(pa.table(columns), tmp_path / f"t/{file}.parquet")
    stage = Pairs(name="pool", path=f"{server.url}/{{0..1}}.{form}", max_bad_fraction=1)
    for last in (2, 3):  # before, the server only says that the shard exists
        server.asked.clear()
        server.fault = lambda path, count, last=last: "status 500" if path == f"1.{form}" and count > last else None
        line = rf"/1\.{form}: status 500; without the shard, .* run again when the server gives the shard, or leave it"
        with pytest.raises(UserError, match=line):
            stage.run(context(tmp_path / f"lacking{last}"))


def test_a_listed_image_is_missing_if_the_server_has_none_and_unreachable_if_it_does_not_answer(
    tmp_path: Path, server: RangeServer
) -> None:
    (tmp_path / "list.csv").write_text("image\n0.png\n1.png\n2.png\n")
    stage = Images(name="seen", path=f"{tmp_path}/list.csv", image_root=server.url, max_bad_fraction=0.9)
    server.fault = lambda path, count: "status 503" if path == "1.png" else None
    ctx, events = listening(tmp_path / "lacking")
    assert stage.run(ctx).num_samples == 1
    line = f"1 of 3 samples are left out: they could not be reached, such as {server.url}/1.png"
    assert bad_and_warnings(events) == ([("unreachable", True), ("missing_image", False)], [(line, True)])
    server.fault = lambda path, count: "status 403" if path == "1.png" else None
    ctx, events = listening(tmp_path / "refused")
    assert stage.run(ctx).num_samples == 1
    assert bad_and_warnings(events) == ([("missing_image", False)] * 2, [])


def test_labels_of_a_tar_that_do_not_come_stop_the_indexing(tmp_path: Path, server: RangeServer) -> None:
    stage = Tagged(
        name="tags", path=f"{server.url}/{{0..1}}.tar", labels_key="json.labels", class_names=["cat", "dog"],
        max_bad_fraction=1, verify=False,
    )  # fmt: skip
    ctx = context(tmp_path / "lacking")

    def send(event: Event) -> None:
        if event.type == "progress" and event.data["done"] == 2:  # both tars are scanned
            server.fault = lambda path, count: "status 500" if path == "1.tar" else None

    ctx.send = send
    with pytest.raises(UserError, match=r"/1\.tar: status 500$"):
        stage.run(ctx)
    server.fault = lambda path, count: None
    assert stage.run(context(tmp_path / "again")).num_images == [0, 2 * PER_FILE]


def test_an_annotated_image_that_does_not_come_is_left_out_with_a_warning(tmp_path: Path, server: RangeServer) -> None:
    stage = Annotated(
        name="seen", path=f"{server.url}/{{0..1}}.tar", format="webdataset", names=["dog"], max_bad_fraction=0.5
    )
    ctx, events = listening(tmp_path / "lacking")
    left = 0

    def fault(path: str, count: int) -> str | None:
        nonlocal left
        left -= 1
        return "status 500" if left >= 0 else None

    def send(event: Event) -> None:
        nonlocal left
        events.append(event)
        if event.type == "progress" and event.data["unit"] == "images":  # the first image is checked
            left = TRIES

    ctx.send = send
    server.fault = fault
    assert stage.run(ctx).num_samples == 2 * PER_FILE - 1
    line = f"1 of 12 samples are left out: they could not be reached, such as {server.url}/0.tar:1"
    bad, warnings = bad_and_warnings(events)
    assert bad == [("unreachable", True), ("bad_image", False)], "its annotation is bad too"
    assert (line, True) in warnings
