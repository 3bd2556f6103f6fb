"""A shard that cannot be read is skipped, counted and named, up to a fraction of the samples."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vfm
from filter_runs import jpeg, run, verdicts
from shard_tasks import KilledError
from vfm.data import DatasetSpec, Shard, open_dataset, read_subset, write_index
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import load_panels
from vfm.plugin import Event, Pool, Preflight, UserError
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.export.stages import ExportSubset
from vfm_curation.filters.stages import FilterPool
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.summaries import DAMAGED, NUM_BAD_SHOWN, Lost, TaskSummary

NUM_SHARDS, SIZE = 25, 4


FAULTS = {"missing": Path.unlink, "cut": lambda file: file.write_bytes(file.read_bytes()[:700])}


@pytest.fixture(params=FAULTS)
def pool(request: pytest.FixtureRequest, make_pool: Any, tmp_path: Path) -> Any:
    samples = [(f"u{i}", {"en": [f"a dog {i}", f"a cat {i}"]}) for i in range(NUM_SHARDS * SIZE)]
    pool = make_pool("pool", samples, shard_size=SIZE)
    FAULTS[request.param](tmp_path / f"pool-{7 * SIZE:06d}.tar")
    return pool


def filtering(name: str, **settings: Any) -> FilterPool:
    return FilterPool(name=name, pool="p", filters=[{"type": "caption_length", "min_words": 3}], **settings)


@pytest.fixture
def matching(run_stage: Any, tmp_path: Path) -> Any:
    (tmp_path / "words.txt").write_text("dog\ncat")
    metadata = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "words.txt")))
    return lambda name, send=lambda event: None, **settings: (
        MatchTexts(name=name, pool="p", metadata="m", **settings),
        {"m": metadata, "send": send},
    )


def test_a_damaged_shard_is_skipped_counted_and_named(run_stage: Any, pool: Any, matching: Any) -> None:
    events: list[Event] = []
    stage, inputs = matching("matches", events.append)
    matches = run_stage(stage, p=pool, **inputs)
    (bad,) = [event.data for event in events if event.type == "bad_sample"]
    assert bad["reason"] == "damaged_shard"
    assert f"pool-{7 * SIZE:06d}.tar" in bad["where"]
    warning = f"4 of 100 samples are left out: 1 of 25 shards cannot be read, such as {bad['where']}"
    assert [event.data["message"] for event in events if event.type == "warning"] == [warning]
    assert matches.num_texts == matches.num_matched == 2 * (NUM_SHARDS - 1) * SIZE
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=1000), x=matches)
    assert subset.num_samples == len(open_dataset(subset)) == (NUM_SHARDS - 1) * SIZE
    assert set(read_subset(subset.path)["shard"].to_pylist()) == set(range(NUM_SHARDS)) - {7}
    events.clear()
    filtered = run_stage(filtering("filtered"), send=events.append, p=pool)
    assert [event.data["reason"] for event in events if event.type == "bad_sample"] == ["damaged_shard"]
    assert warning in [event.data["message"] for event in events if event.type == "warning"]
    assert len(open_dataset(filtered)) == (NUM_SHARDS - 1) * SIZE
    for source in (subset, filtered):
        assert run_stage(ExportSubset(name="out", subset="s"), s=source).num_samples == 0


def test_bad_samples_of_a_lost_shard_are_not_counted_again(run_stage: Any, tmp_path: Path) -> None:
    rows = [{"en": "a dog", "weight": 1}, {"en": None, "weight": 2}]
    tables = [pa.Table.from_pylist(rows), pa.Table.from_pylist(rows).drop("weight")]
    shards = []
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{number}.parquet")
        shards.append(Shard.of(tmp_path / f"{number}.parquet", 2, format="parquet"))
    folder = tmp_path / "store" / "texts"
    folder.mkdir(parents=True)
    pool = Pool.create(
        folder,
        num_samples=write_index(folder, shards, DatasetSpec(images=False, texts={"en": "en"})),
        languages=["en"],
    )
    events: list[Event] = []
    run(run_stage, pool, [{"type": "where", "keep": "weight > 0"}], max_bad_fraction=0.5, send=events.append)
    bad = {event.data["where"]: event.data["reason"] for event in events if event.type == "bad_sample"}
    assert list(bad.values()) == ["missing_caption", "damaged_shard"], bad


def test_more_than_the_allowed_fraction_stops_and_names_the_shard(run_stage: Any, pool: Any, matching: Any) -> None:
    line = rf"pool-{7 * SIZE:06d}.tar.* \(4 of 100 samples are lost, max_bad_fraction is 0.03\)"
    stage, inputs = matching("matches", max_bad_fraction=0.03)
    with pytest.raises(UserError, match=line):
        run_stage(stage, p=pool, **inputs)
    with pytest.raises(UserError, match=line):
        run_stage(filtering("filtered", max_bad_fraction=0.03), p=pool)


def test_a_shard_that_is_back_when_matching_resumes_is_matched(
    run_stage: Any, make_pool: Any, matching: Any, tmp_path: Path
) -> None:
    samples = [(f"u{i}", {"en": [f"a dog {i}", f"a cat {i}"]}) for i in range(NUM_SHARDS * SIZE)]
    pool, tar = make_pool("pool", samples, shard_size=SIZE), tmp_path / f"pool-{7 * SIZE:06d}.tar"

    def kill(event: Event) -> None:
        if event.type == "progress" and event.data["done"] == 10:
            raise KilledError

    stage, inputs = matching("matches")
    tar.rename(tmp_path / "away.tar")
    with pytest.raises(KilledError):
        run_stage(stage, p=pool, **{**inputs, "send": kill})
    (tmp_path / "away.tar").rename(tar)
    matches = run_stage(stage, p=pool, **inputs)
    assert matches.num_texts == matches.num_matched == 200
    assert np.load(matches.path / "counts.npy").tolist() == [100, 100]


def killed_at(name: str, done: int) -> Callable[[Event], None]:
    """Return a listener that kills a run at a shard of a pass of a filter; the name of measuring is empty."""

    def send(event: Event) -> None:
        if event.type == "progress" and event.data["shown"].get("filter", "") == name and event.data["done"] == done:
            raise KilledError

    return send


# Shorter texts pass if the long ones of the lost shard are back: they move the median.
CHAIN = [
    {"type": "where", "keep": "top(characters, 0.5)"},
    {"type": "duplicates", "of": "image"},
    {"type": "image_size", "min_side": 40},
]


@pytest.mark.parametrize(("name", "done"), [("", 10), ("texts", 10), ("duplicate_image", 10), ("image_size", 24)])
def test_a_shard_that_is_back_when_filtering_resumes_is_filtered(
    run_stage: Any, make_pool: Any, tmp_path: Path, name: str, done: int
) -> None:
    samples = [(f"u{i:03d}", {"en": ["a dog " + "x" * (i * 37 % 50)]}) for i in range(NUM_SHARDS * SIZE)]
    files = [jpeg(number) for number in range(40)]
    images = {uid: files[i % 40] for i, (uid, _) in enumerate(samples)}
    pool, tar = make_pool("pool", samples, shard_size=SIZE, images=images), tmp_path / f"pool-{SIZE:06d}.tar"
    expected = verdicts(run(run_stage, pool, CHAIN, name="expected"))
    tar.rename(tmp_path / "away.tar")
    with pytest.raises(KilledError):
        run(run_stage, pool, CHAIN, send=killed_at(name, done))
    without = verdicts(run(run_stage, pool, CHAIN, name="without"))
    (tmp_path / "away.tar").rename(tar)
    events: list[Event] = []
    filtered = run(run_stage, pool, CHAIN, send=events.append)
    assert verdicts(filtered) == expected
    assert not [event for event in events if event.type in ("bad_sample", "warning")]
    kept, kept_before = ({uid for uid, reason in each.items() if not reason} for each in (expected, without))
    assert kept - kept_before
    assert kept_before - kept


@pytest.mark.parametrize(
    "keep", ["startswith(stored.uid, 'u')", "len(stored.uid) + 1 >= q0", "top(len(stored.uid), 0.99)"]
)
def test_a_filter_by_a_column_of_the_user_skips_a_shard(run_stage: Any, pool: Any, keep: str) -> None:
    filtered = run(run_stage, pool, [{"type": "where", "keep": keep}])
    assert set(read_subset(filtered.path)["shard"].to_pylist()) == set(range(NUM_SHARDS)) - {7}


def test_the_check_before_a_run_passes_over_a_first_shard_that_is_missing(make_pool: Any, tmp_path: Path) -> None:
    pool = make_pool("pool", [(f"u{i}", {"en": ["a dog"]}) for i in range(2 * SIZE)], shard_size=SIZE)
    (tmp_path / "pool-000000.tar").unlink()
    stage = FilterPool(name="f", pool="p", filters=[{"type": "where", "keep": "startswith(stored.uid, 'u')"}])
    stage.preflight(Preflight({}, {"p": pool.path}))


def test_a_filter_of_links_skips_a_missing_table(run_stage: Any, tmp_path: Path) -> None:
    for number in range(3):
        rows = [{"uid": f"{number}", "url": f"http://h.org/{number}.jpg", "caption": "a dog"}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
    pool = run_stage(Pairs(name="pool", path=str(tmp_path / "{0..2}.parquet"), images=False))
    (tmp_path / "1.parquet").unlink()
    filtered = run(run_stage, pool, [{"type": "duplicates", "of": "url"}], max_bad_fraction=0.5)
    assert read_subset(filtered.path)["uid"].to_pylist() == ["0", "2"]


@pytest.mark.parametrize(("name", "done"), [("", 10), ("caption_length", 10)])
def test_a_shard_that_is_still_lost_when_filtering_resumes_is_counted_once(
    run_stage: Any, pool: Any, name: str, done: int
) -> None:
    with pytest.raises(KilledError):
        run_stage(filtering("filtered"), send=killed_at(name, done), p=pool)
    events: list[Event] = []
    filtered = run_stage(filtering("filtered"), send=events.append, p=pool)
    assert [event.data["reason"] for event in events if event.type == "bad_sample"] == ["damaged_shard"]
    (warning,) = [event.data["message"] for event in events if event.type == "warning"]
    assert warning.startswith("4 of 100 samples are left out: 1 of 25 shards cannot be read, such as ")
    assert len(open_dataset(filtered)) == (NUM_SHARDS - 1) * SIZE


@pytest.mark.parametrize("kind", ["match", "filter"])
def test_a_shard_without_samples_in_a_subset_is_not_read(
    run_stage: Any, make_pool: Any, matching: Any, tmp_path: Path, kind: str
) -> None:
    pool = make_pool(
        "pool", [(f"u{i}", {"en": ["dog" if i < SIZE else "a big dog"]}) for i in range(3 * SIZE)], shard_size=SIZE
    )
    subset = run_stage(filtering("subset"), p=pool)
    (tmp_path / "pool-000000.tar").unlink()
    events: list[Event] = []
    stage, inputs = matching("made") if kind == "match" else (filtering("made"), {})
    made = run_stage(stage, p=subset, **{**inputs, "send": events.append})
    assert (made.num_texts if kind == "match" else made.num_samples) == 2 * SIZE
    assert not [event for event in events if event.type in ("bad_sample", "warning")]


def test_passes_are_not_repeated_if_the_error_of_a_lost_shard_has_another_text(
    run_stage: Any, pool: Any, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run_stage(filtering("filtered"), send=killed_at("caption_length", 10), p=pool)
    (tmp_path / f"pool-{7 * SIZE:06d}.tar").write_bytes(b"another size")
    events: list[Event] = []
    run_stage(filtering("filtered"), send=events.append, p=pool)
    (bad,) = [event.data for event in events if event.type == "bad_sample"]
    assert "12 now" in bad["where"]
    passes = {event.data["shown"].get("filter") for event in events if event.type == "progress"}
    assert "caption_length" in passes
    assert "texts" not in passes
    assert bad["lacks_data"]


@pytest.mark.parametrize("form", ["pairs", "links", "tars"])
def test_an_export_stops_at_a_lost_shard_and_has_it_when_it_is_back(
    run_stage: Any, make_pool: Any, tmp_path: Path, form: str
) -> None:
    uids = [f"u{i}" for i in range(20)]
    content = {"images": dict.fromkeys(uids, jpeg(0)), "urls": {uid: f"https://x.org/{uid}.jpg" for uid in uids}}
    pool = make_pool("pool", [(uid, {"en": ["a big dog"]}) for uid in uids], shard_size=SIZE, **content)
    subset, tar = run_stage(filtering("filtered"), p=pool), tmp_path / "pool-000012.tar"
    forms = {**dict.fromkeys(("pairs", "uids", "links", "tars"), False), form: True}
    stage = ExportSubset(name="out", subset="s", samples_per_shard=3, **forms)
    tar.rename(tmp_path / "away.tar")
    with pytest.raises(UserError, match=rf"^shard \d+: {tar}: no such file$"):
        run_stage(stage, s=subset)
    (tmp_path / "away.tar").rename(tar)
    exported = run_stage(stage, s=subset)
    if form == "tars":
        assert exported.num_samples == 20
        assert {sample.uid for sample in map(open_dataset(exported).facts, range(20))} == set(uids)
    else:
        folder = exported.path / {"pairs": "pairs.parquet", "links": "links"}[form]
        assert sorted(pq.read_table(folder)["uid"].to_pylist()) == sorted(uids)


@pytest.mark.parametrize("kind", ["match", "filter"])
def test_a_cached_stage_says_that_a_shard_was_lost_and_how_to_make_it_again(
    make_pool: Any, tmp_path: Path, kind: str
) -> None:
    samples = [(f"u{i}", {"en": ["a big dog"]}) for i in range(NUM_SHARDS * SIZE)]
    make_pool("pool", samples, shard_size=SIZE, images=dict.fromkeys(dict(samples), jpeg(0)))
    tar = tmp_path / "pool-000012.tar"
    pairs = {"kind": "data.pairs", "name": "pool", "path": str(tmp_path / "pool-*.tar"), "texts": {"en": "json.en"}}
    pool = vfm.run({"stages": [pairs]}, store=tmp_path / "runs", progress=False)["pool"]
    (tmp_path / "words.txt").write_text("dog")
    entries = {"kind": "curation.metadata", "name": "entries", "path": str(tmp_path / "words.txt")}
    settings: dict[str, Any] = {"metadata": "entries"} if kind == "match" else {"filters": [{"type": "caption_length"}]}
    made = {"kind": f"curation.{kind}", "name": "made", "pool": str(pool.path), **settings}

    def warnings_of_run(*, fresh: bool = False) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            vfm.run({"stages": [entries, made]}, store=tmp_path / "runs", fresh=fresh, progress=False)
        return [str(warning.message) for warning in caught if "shards" in str(warning.message)]

    tar.rename(tmp_path / "away.tar")
    line = f"made: 4 of 100 samples are left out: 1 of 25 shards cannot be read, such as {tar}: no such file"
    assert warnings_of_run() == [line]
    (tmp_path / "away.tar").rename(tar)
    again = "(when it was made; `vfm run RECIPE --until made --fresh` makes it again, with its inputs)"
    assert warnings_of_run() == [f"{line} {again}"]
    assert warnings_of_run(fresh=True) == []
    assert warnings_of_run() == []


def test_a_shard_that_is_gone_after_matching_has_no_examples(
    run_stage: Any, make_pool: Any, matching: Any, tmp_path: Path
) -> None:
    pool = make_pool("pool", [(f"u{i}", {"en": [f"a dog {i}"]}) for i in range(40)], shard_size=SIZE)
    stage, inputs = matching("matches")
    matches = run_stage(stage, p=pool, **inputs)
    (tmp_path / "pool-000000.tar").unlink()
    events: list[Event] = []
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=5), send=events.append, x=matches)
    assert len(read_subset(subset.path)) == 40
    line = f"the report has no examples of a shard that cannot be read: {tmp_path / 'pool-000000.tar'}: no such file"
    assert line in [event.data["message"] for event in events if event.type == "warning"]
    texts = [row[1] for row in next(panel for panel in load_panels(subset.path) if panel.title == "Examples").rows]
    assert texts
    assert not {f"a dog {i}" for i in range(SIZE)} & set(texts)


def test_a_shard_with_many_bad_samples_before_its_damage_is_named() -> None:
    summary = TaskSummary()
    for number in range(NUM_BAD_SHOWN + 5):
        summary.skip("broken_json", f"a.parquet: row {number}")
    summary.lose(7, 100, "a.parquet: damaged")
    assert summary.bad == {"broken_json": NUM_BAD_SHOWN + 5, DAMAGED: 1}
    assert (DAMAGED, "a.parquet: damaged") in summary.bad_shown
    with pytest.raises(UserError, match=r"^a\.parquet: damaged \(100 of 1000 samples are lost"):
        Lost(total=1000, max_bad_fraction=0.05).add(summary)
