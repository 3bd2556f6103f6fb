"""Pass 2 by tasks: a kill repeats only unfinished shards, and t is the same from a sample that is complete or not."""

import errno
import os
import random
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shard_tasks import KilledError
from vfm.data import read_subset, subset_file
from vfm.plugin import Artifact, Event, Stage
from vfm.storage.publishing import publish_folder
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.balance.subset import BalanceJob, expected_size
from vfm_curation.counts import sampled_texts
from vfm_curation.counts.matches import read_shards
from vfm_curation.counts.probabilities import text_probability
from vfm_curation.export.stages import ExportSubset
from vfm_curation.filters.stages import FilterPool
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.runtime import CurationRuntime
from vfm_curation.shard_files import link_files

WORDS = ["dog", "cat", "red car", "lighthouse", "okapi", "church", "glacier"]


@pytest.fixture
def matched(make_pool: Any, run_stage: Any, tmp_path: Path) -> Any:
    rng = random.Random(0)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    drawn = [rng.choices(WORDS, weights, k=rng.randint(1, 3)) for _ in range(300)]
    samples = [(f"uid{i}", {"en": [f"a {word} and {i}" for word in words]}) for i, words in enumerate(drawn)]
    (tmp_path / "entries.txt").write_text("\n".join(WORDS))
    metadata = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "entries.txt")))
    pool = make_pool("pool", samples, shard_size=30)
    return lambda name: run_stage(MatchTexts(name=name, pool="p", metadata="m"), p=pool, m=metadata)


def test_a_killed_balance_repeats_only_unfinished_shards(run_stage: Any, matched: Any) -> None:
    matches = matched("matches")

    def kill(event: Event) -> None:
        if event.type == "progress" and event.data["done"] == 4:
            raise KilledError

    stage = MetaclipBalance(name="curated", matches="x", t=30)
    with pytest.raises(KilledError):
        run_stage(stage, send=kill, x=matches)
    work = matches.path.parents[1] / "work" / "curated" / "subset"
    finished = {file.name: file.stat().st_mtime_ns for file in work.iterdir()}
    assert len(finished) == 4
    subset = run_stage(stage, x=matches)
    times = {file.name: file.stat().st_mtime_ns for file in (subset.path / "subset").iterdir()}
    assert times | finished == times
    assert len(times) == 10
    unbroken = run_stage(stage.model_copy(update={"name": "unbroken"}), x=matches)
    for shard in range(10):
        assert subset_file(subset.path, shard).read_bytes() == subset_file(unbroken.path, shard).read_bytes()
    for name in ("subset_index.parquet", "entry_counts.parquet"):
        assert (subset.path / name).read_bytes() == (unbroken.path / name).read_bytes()


def test_a_run_that_is_killed_while_its_artifact_is_hashed_repeats_no_shard(run_stage: Any, matched: Any) -> None:
    def times(artifact: Artifact, *folders: str) -> dict[str, int]:
        files = (file for folder in folders for file in (artifact.path / folder).iterdir())
        return {f"{file.parent.name}/{file.name}": file.stat().st_mtime_ns for file in files}

    matches = matched("matches")
    written = times(matches, "shards")
    assert len(written) == 10
    assert times(matched("matches"), "shards") == written  # a run begins with an empty folder and the same work folder
    stages: list[tuple[Stage, list[str]]] = [
        (MetaclipBalance(name="curated", matches="x", t=30), ["subset"]),
        (FilterPool(name="kept", pool="x", filters=[{"type": "where", "keep": "words > 1"}]), ["subset", "verdicts"]),
        (ExportSubset(name="exported", subset="x", pairs=True), ["pairs.parquet"]),
    ]
    source = matches
    for stage, folders in stages:
        made = run_stage(stage, x=source)
        written = times(made, *folders)
        assert len(written) >= 10
        assert times(run_stage(stage, x=source), *folders) == written
        source = made


def test_files_are_moved_where_the_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "work" / "shards").mkdir(parents=True)
    (tmp_path / "artifact").mkdir()
    (tmp_path / "work" / "shards" / "0").write_text("one")
    monkeypatch.setattr(os, "link", link)
    target = tmp_path / "artifact" / "shards"
    assert link_files(tmp_path / "work" / "shards", target) == target
    assert (target / "0").read_text() == "one"
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("later", [0o022, 0o002])
def test_files_of_an_attempt_under_another_umask_are_published_with_the_permissions_of_new_files(
    tmp_path: Path, later: int
) -> None:
    before = os.umask(0o077)
    try:
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "0").write_text("one")
        os.umask(later)
        (tmp_path / "part").mkdir()
        link_files(tmp_path / "work", tmp_path / "part" / "shards")
        publish_folder(tmp_path / "part", tmp_path / "artifact")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "artifact" / "shards" / "0").stat().st_mode) == 0o666 & ~later
    assert (tmp_path / "work" / "0").read_text() == "one"


def test_files_of_another_draw_are_not_taken_for_finished(run_stage: Any, matched: Any) -> None:
    matches = matched("matches")
    kept = {}
    for seed in (0, 1):
        stage = MetaclipBalance(name="curated", matches="x", t=30, seed=seed)
        subset = run_stage(stage, x=matches)  # its files stay in the work folder, as after a kill before the end
        kept[seed] = read_subset(subset.path)["kept"].to_pylist()
    assert kept[0] != kept[1]


@pytest.mark.parametrize("texts", ["every", "one_per_image"])
def test_t_is_the_same_whether_the_sample_is_complete_or_the_tasks_search(
    run_stage: Any, matched: Any, monkeypatch: pytest.MonkeyPatch, texts: Any
) -> None:
    found = {}
    for name, most in (("complete", 1 << 18), ("sampled", 5)):
        monkeypatch.setattr(sampled_texts, "NUM_SAMPLED", most)
        matches = matched(name)
        events: list[Event] = []
        stage = MetaclipBalance(name=f"of-{name}", matches="x", target_size=150, texts=texts)
        subset = run_stage(stage, send=events.append, x=matches)
        values = next(event.data["values"] for event in events if event.type == "metrics")
        found[name] = values, read_subset(subset.path).to_pylist()
    assert found["complete"] == found["sampled"]
    assert abs(found["complete"][0]["curation/expected_texts"] - 150) <= 0.5


def test_the_expected_size_is_the_exact_sum_by_any_number_of_processes(matched: Any, tmp_path: Path) -> None:
    matches = matched("matches")
    probability = np.random.default_rng(0).random(len(WORDS))
    job = BalanceJob.of(matches.path, tmp_path, probability)
    sizes = {expected_size(job, CurationRuntime(workers=workers)) for workers in (1, 2)}
    plain = sum(text_probability(s.ids, s.offsets, probability).sum() for s in read_shards(matches.path))
    assert len(sizes) == 1
    assert sizes.pop() == pytest.approx(plain, abs=1e-6)
