"""Remote shards that cannot be reached are lost as local ones are, and tried again when a run resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations import memory

from filter_runs import jpeg, run, verdicts
from shard_tasks import KilledError
from vfm.data import write_tar
from vfm.data.pairs.stages import Pairs
from vfm.plugin import Event, UserError
from vfm.storage import remote
from vfm_curation.export.stages import ExportSubset
from vfm_curation.filters.stages import FilterPool
from vfm_curation.filters.texts import opened
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata

NUM_SHARDS, SIZE, LOST = 10, 4, 3
NUM_TEXTS = NUM_SHARDS * SIZE
FILTERS = [{"type": "caption_length", "min_words": 3}]
ALONE = {"workers": 1}  # other processes have no files in fsspec's memory


class Store:
    """Files in fsspec's memory, of which one can be taken away and put back."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.files = fsspec.filesystem("memory")
        self.lost = f"/shards/{LOST}.{form}"

    @property
    def address(self) -> str:
        return f"memory:/{self.lost}"

    def take(self) -> None:
        self.files.mv(self.lost, "/away")

    def put_back(self) -> None:
        self.files.mv("/away", self.lost)


@pytest.fixture(params=["tar", "parquet"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    store = Store(request.param)
    for shard in range(NUM_SHARDS):
        file = tmp_path / f"{shard}.{store.form}"
        numbers = range(shard * SIZE, (shard + 1) * SIZE)
        if store.form == "tar":
            record = '{{"uid": "u{0:02d}", "url": "http://h.org/{0}", "en": "a big dog {0}", "weight": {0}}}'
            write_tar(file, [(f"{n}", {"jpg": jpeg(n), "json": record.format(n).encode()}) for n in numbers])
        else:
            rows = []
            for n in numbers:
                row = {"uid": f"u{n:02d}", "url": f"http://h.org/{n}", "en": f"a big dog {n}", "weight": n}
                rows.append({**row, "image": jpeg(n)})
            pq.write_table(pa.Table.from_pylist(rows), file)
        with fsspec.open(f"memory://shards/{file.name}", "wb") as stream:
            stream.write(file.read_bytes())
    yield store
    store.files.rm("/shards", recursive=True)
    remote._failed.clear()


@pytest.fixture
def pool(store: Store, run_stage: Any) -> Any:
    texts = {"en": "json.en" if store.form == "tar" else "en"}
    return run_stage(Pairs(name="pool", path=f"memory://shards/{{0..9}}.{store.form}", texts=texts))


def killed_after(done: int) -> Any:
    def send(event: Event) -> None:
        if event.type == "progress" and event.data["done"] == done:
            raise KilledError

    return send


def bad_and_warnings(events: list[Event]) -> list[str]:
    shown = []
    for event in events:
        if event.type == "bad_sample":
            shown.append(f"{event.data['reason']} {event.data['where']}")
        if event.type == "warning":
            shown.append(event.data["message"])
    return shown


@pytest.mark.parametrize("kind", ["match", "filter"])
def test_a_remote_shard_is_lost_and_tried_again_when_a_run_resumes(
    run_stage: Any, pool: Any, store: Store, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "words.txt").write_text("dog")
    entries = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "words.txt")))
    events: list[Event] = []

    def made(name: str, **settings: Any) -> Any:
        events.clear()
        send = settings.pop("send", events.append)
        stage: MatchTexts | FilterPool
        if kind == "match":
            stage = MatchTexts(name=name, pool="p", metadata="m", runtime=ALONE, **settings)
            return run_stage(stage, send=send, p=pool, m=entries)
        stage = FilterPool(name=name, pool="p", filters=FILTERS, runtime=ALONE, **settings)
        return run_stage(stage, send=send, p=pool)

    def num_texts(artifact: Any) -> int:
        return artifact.num_texts if kind == "match" else artifact.num_samples

    store.take()
    line = rf"{store.address}: (no such file|not found) \({SIZE} of {NUM_TEXTS} samples are lost, max_bad_fraction is"
    with pytest.raises(UserError, match=line):
        made("strict", max_bad_fraction=0.05)
    assert num_texts(made("lacking", max_bad_fraction=0.2)) == NUM_TEXTS - SIZE
    bad, warning = bad_and_warnings(events)
    assert bad.startswith(f"damaged_shard {store.address}: no")
    assert warning.startswith(f"{SIZE} of {NUM_TEXTS} samples are left out: 1 of {NUM_SHARDS} shards cannot be read")
    with pytest.raises(KilledError):
        made("resumed", max_bad_fraction=0.2, send=killed_after(NUM_SHARDS - 1))
    store.put_back()
    resumed = made("resumed", max_bad_fraction=0.2)
    assert num_texts(resumed) == NUM_TEXTS
    assert bad_and_warnings(events) == []
    if kind == "match":
        assert np.load(resumed.path / "counts.npy").tolist() == [NUM_TEXTS]


def test_a_remote_shard_whose_values_do_not_come_after_its_texts_is_lost_too(
    run_stage: Any, pool: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = memory.MemoryFileSystem.cat_file
    done, allowed = 0, 1 << 30  # reads of the shard

    def cat_file(files: memory.MemoryFileSystem, path: str, *args: Any, **named: Any) -> Any:
        nonlocal done
        done += path == store.lost
        if path == store.lost and done > allowed:
            raise OSError("a fault")
        return read(files, path, *args, **named)

    monkeypatch.setattr(memory.MemoryFileSystem, "cat_file", cat_file)
    opened(pool.path).texts_of_shard(LOST)
    of_texts = done
    chain = [{"type": "where", "keep": "weight >= 0"}]
    events: list[Event] = []

    def num_kept(name: str) -> int:
        nonlocal done
        events.clear()
        done = 0
        settings = {"max_bad_fraction": 0.2, "send": events.append, "runtime": ALONE}
        return len(verdicts(run(run_stage, pool, chain, name=name, **settings)))

    assert num_kept("whole") == NUM_TEXTS
    of_both = done
    assert of_both > of_texts
    for allowed in range(of_texts, of_both):
        assert num_kept(f"lacking-{allowed}") == NUM_TEXTS - SIZE
        bad, warning = bad_and_warnings(events)
        assert bad == f"damaged_shard {store.address}: no connection (OSError)"
        assert warning.endswith(f"1 of {NUM_SHARDS} shards cannot be read, such as {bad.partition(' ')[2]}")


@pytest.mark.parametrize("form", ["pairs", "links", "tars"])
def test_an_export_stops_at_a_remote_shard_and_has_it_when_it_is_back(
    run_stage: Any, pool: Any, store: Store, form: str
) -> None:
    subset = run_stage(FilterPool(name="filtered", pool="p", filters=FILTERS, runtime=ALONE), p=pool)
    forms = {**dict.fromkeys(("pairs", "uids", "links", "tars"), False), form: True}
    stage = ExportSubset(name="out", subset="s", samples_per_shard=3, runtime=ALONE, **forms)
    store.take()
    with pytest.raises(UserError, match=rf"^shard \d+: {store.address}: (no such file|not found)$"):
        run_stage(stage, s=subset)
    store.put_back()
    exported = run_stage(stage, s=subset)
    if form == "tars":
        assert (exported.num_samples, exported.bad_samples) == (NUM_TEXTS, {})
    else:
        rows = pq.read_table(exported.path / {"pairs": "pairs.parquet", "links": "links"}[form])
        assert len(rows) == NUM_TEXTS
        assert set(rows["url"].to_pylist()) == {f"http://h.org/{n}" for n in range(NUM_TEXTS)}


def test_a_filter_of_images_stops_at_a_remote_shard_that_is_gone_after_its_texts(
    run_stage: Any, pool: Any, store: Store
) -> None:
    chain = [*FILTERS, {"type": "image_size", "min_side": 1}]
    expected = verdicts(run(run_stage, pool, chain, name="expected", runtime=ALONE))
    opened.cache_clear()  # it keeps row groups in memory

    def take(event: Event) -> None:
        if event.type == "progress" and event.data["shown"].get("filter") == "texts" and event.data["done"] == 1:
            store.take()

    with pytest.raises(UserError, match=rf"^shard {LOST}: {store.address}: (no such file|not found)$"):
        run(run_stage, pool, chain, send=take, runtime=ALONE)
    store.put_back()
    assert verdicts(run(run_stage, pool, chain, runtime=ALONE)) == expected
