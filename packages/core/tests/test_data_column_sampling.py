"""Sampling by a column: the right frequencies, exact in every division of the work, and one line for a mistake."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from cli_world import run_here
from data_samples import context, encoded, number_of
from vfm.base import UserError
from vfm.data import Mixture, RepeatedEpochs, SampleOrder, TrainingData, open_dataset, write_tar
from vfm.data.index.column_sampling import SamplingSummary, column_values, factors_of, sample_by_column
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import ColumnSampler

SITES = ["north"] * 14 + ["south"] * 4 + ["west"] * 2
ROWS: list[dict[str, Any]] = [
    {"caption": f"number {number}", "site": site, "weight": number % 5} for number, site in enumerate(SITES)
]
BY_SITE, BY_WEIGHT = ColumnSampler(balanced="site"), ColumnSampler(weighted="weight")


def write_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with (folder / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", *ROWS[0]])
        writer.writeheader()
        for number, row in enumerate(rows):
            (folder / f"{number}.png").write_bytes(encoded(number))
            writer.writerow({"image": f"{number}.png", **row})
    return folder / "t.csv"


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    images = [encoded(number) for number in range(len(rows))]
    pq.write_table(pa.Table.from_pylist(rows).append_column("image", pa.array(images)), folder / "t.parquet")
    return folder / "t.parquet"


def write_tars(folder: Path, rows: list[dict[str, Any]]) -> str:
    for shard in range(3):
        part = range(shard, len(rows), 3)
        samples = [(f"{n:03d}", {"png": encoded(n), "json": json.dumps(rows[n]).encode()}) for n in part]
        write_tar(folder / f"{shard}.tar", samples)
    return f"{folder}/{{0..2}}.tar"


def open_pairs(folder: Path, write: Any, rows: list[dict[str, Any]]) -> Any:
    (folder / "data").mkdir(parents=True)
    path, texts = write(folder / "data", rows), {"en": "caption"}
    texts = {"en": "json.caption"} if write is write_tars else texts
    columns = ["json.site", "json.weight"] if write is write_tars else ["site", "weight"]
    stage = Pairs(name="pool", path=str(path), texts=texts, columns=columns, max_bad_fraction=1.0)
    return open_dataset(stage.run(context(folder / "store", "pool")))


@pytest.fixture
def tars(tmp_path: Path) -> Any:
    return open_pairs(tmp_path, write_tars, ROWS)


def training(source: Any, sampler: ColumnSampler, **changes: Any) -> TrainingData[Any]:
    arguments = {"seed": 3, "global_batch_size": 12, "shuffle_shards": 2, "repeats": True, **changes}
    return TrainingData(sample_by_column(source, sampler, 3), number_of, **arguments)


def uses(steps: Any) -> list[list[tuple[str, int]]]:
    """Return the key and the draw of each sample of each step."""
    pairs = [[zip(batch.keys, batch.inputs.seed.tolist(), strict=True) for batch in step] for step in steps]
    return [[use for batch in step for use in batch] for step in pairs]


@pytest.mark.parametrize("write", [write_table, write_parquet, write_tars])
def test_values_are_drawn_equally_often_and_weights_in_proportion(tmp_path: Path, write: Any) -> None:
    source = open_pairs(tmp_path, write, ROWS)
    facts = [source.facts(number).columns for number in range(len(source))]
    drawn = sample_by_column(source, BY_SITE, 0).order(seed=0, shuffle_shards=2)(0, 6000)
    sites = Counter(facts[number]["site"] for number in drawn)
    assert all(sites[site] == pytest.approx(2000, abs=60) for site in set(SITES)), sites
    numbers = Counter(drawn.tolist())
    for number, fact in enumerate(facts):
        assert numbers[number] == pytest.approx(2000 / SITES.count(fact["site"]), rel=0.25)  # 4 deviations
    drawn = sample_by_column(source, BY_WEIGHT, 0).order(seed=0, shuffle_shards=2)(0, 6000)
    numbers = Counter(drawn.tolist())
    for number, fact in enumerate(facts):
        expected = 6000 * float(fact["weight"]) / sum(range(5)) / 4
        assert numbers[number] == pytest.approx(expected, rel=0.15), number
    assert all(numbers[number] == 0 for number, fact in enumerate(facts) if not float(fact["weight"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=30), st.integers(0, 5), st.integers(0, 1000))
def test_each_epoch_has_a_sample_as_often_as_its_weight_says_rounded(
    weights: list[float], epoch: int, seed: int
) -> None:
    if sum(weights) < 1e-3:
        return
    factors = factors_of(weights, ColumnSampler(weighted="w"), "x")
    plain = np.array(weights) * len(weights) / sum(weights)
    np.testing.assert_allclose(factors, plain)
    cut = len(weights) // 3
    epochs = RepeatedEpochs([cut, 0, len(weights) - cut], factors, seed)
    numbers = np.concatenate([epochs.samples(epoch, shard) for shard in range(3)])
    counts = np.bincount(numbers, minlength=len(weights))
    assert ((np.floor(plain - 1e-9) <= counts) & (counts <= np.ceil(plain + 1e-9))).all()
    assert epochs.sizes(epoch).tolist() == [len(epochs.samples(epoch, shard)) for shard in range(3)]
    assert factors[epochs.sample(epoch, seed)] > 0


def test_balanced_factors_equal_the_weights_of_torchs_sampler() -> None:
    """WeightedRandomSampler with one over the number of samples of the class, as its users write it."""
    counts = Counter(SITES)
    weights = np.array([1 / counts[site] for site in SITES])
    np.testing.assert_allclose(factors_of(SITES, BY_SITE, "x"), weights / weights.mean())
    summary = SamplingSummary.of(SITES, BY_SITE, "x")
    assert summary.sizes == {"north": 14, "south": 4, "west": 2}
    assert summary.effective_size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    distinct = [len(set(RepeatedEpochs([20], factors_of(SITES, BY_SITE, "x"), 0).samples(e, 0))) for e in range(400)]
    assert np.mean(distinct) == pytest.approx(summary.num_distinct, abs=0.3)


@pytest.mark.parametrize("sampler", [BY_SITE, BY_WEIGHT], ids=["balanced", "weighted"])
def test_workers_ranks_micro_batches_and_restarts_give_the_same_draws(tars: Any, sampler: ColumnSampler) -> None:
    whole = uses(training(tars, sampler).steps(0, 9))
    assert uses(training(tars, sampler).steps(4, 9)) == whole[4:]
    assert uses(training(tars, sampler).steps(0, 9, micro_batch_size=5)) == whole
    ranks = [uses(training(tars, sampler).steps(0, 9, rank=rank, world_size=3)) for rank in range(3)]
    assert [[use for rank in ranks for use in rank[step]] for step in range(9)] == whole
    assert uses(training(tars, sampler, workers=2).steps(0, 2)) == whole[:2]


def test_two_uses_of_a_sample_in_a_step_have_draws_of_their_own(tars: Any) -> None:
    steps = uses(training(tars, BY_SITE).steps(0, 9))
    assert any(len({key for key, _ in step}) < len(step) for step in steps)
    assert all(len({draw for _, draw in step}) == len(step) for step in steps)


def test_a_bad_sample_is_replaced_by_one_that_is_drawn_also_in_workers(tmp_path: Path) -> None:
    rows = [{**row, "key": f"{n}", "weight": 1 if n in (5, 6) else 0} for n, row in enumerate(ROWS)]
    rows[3]["caption"] = ""
    source = open_pairs(tmp_path, write_parquet, rows)
    assert column_values(source, "weight")[3] is None
    for workers in (0, 1):
        data = training(source, BY_WEIGHT, workers=workers, max_bad_fraction=0.5)
        steps = list(data.steps(0, 6))
        assert {key for step in steps for batch in step for key in batch.keys} == {"5", "6"}
        assert {reason for step in steps for batch in step for reason, _ in batch.bad} == {"missing_caption"}


def test_datasets_of_a_mixture_keep_their_shares(tmp_path: Path) -> None:
    sources = [open_pairs(tmp_path / name, write_tars, ROWS) for name in "ab"]
    mixture = sample_by_column(Mixture(sources, [3, 1]), BY_SITE, 0)
    drawn = mixture.order(seed=0, shuffle_shards=2)(0, 4096)
    assert np.count_nonzero(drawn < len(ROWS)) == 3072
    sites = Counter(mixture[number].columns["site"] for number in drawn.tolist())
    assert all(count == pytest.approx(4096 / 3, abs=60) for count in sites.values())


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            ColumnSampler(balanced="sight"),
            r"of the data, label \(the class\), site, weight, got 'sight'",
        ),
        (ColumnSampler(balanced="label"), "got 'label'"),
        (ColumnSampler(weighted="site"), "expected a number of at least 0 in column 'site', got 'north'"),
    ],
)
def test_a_wrong_column_is_one_line(tars: Any, sampler: ColumnSampler, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_by_column(tars, sampler, 0)


def test_weights_that_are_all_zero_or_negative_are_refused() -> None:
    with pytest.raises(UserError, match="x: sampler: expected a weight above 0 in column 'weight', got 0 everywhere"):
        factors_of([0, "0"], BY_WEIGHT, "x")
    with pytest.raises(UserError, match="x: sampler: expected a number of at least 0 in column 'weight', got -1"):
        factors_of([1, -1], BY_WEIGHT, "x")


RECIPE = """
stages:
  - {{kind: data.pairs, name: pool, path: data/t.csv, texts: {{en: caption}}, columns: [site, weight]}}
  - kind: clip.train
    name: clip
    data: pool
    steps: 1
    loading: {{sampler: {sampler}}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("vfm_clip")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data", ROWS)
    return tmp_path


def test_the_plan_shows_the_size_of_an_epoch_once_the_data_are_known(here: Path) -> None:
    (here / "r.yaml").write_text(RECIPE.format(sampler="{balanced: site}"))
    assert "effective size" not in run_here("plan", "r.yaml").out
    assert run_here("run", "r.yaml", "--until", "pool").code == 0
    shown = " ".join(run_here("plan", "r.yaml").out.split())
    assert "clip on pool: balanced by site (north 14, south 4, west 2)" in shown
    assert "an epoch of 20 draws has about 13 different samples, effective size 11" in shown


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("{balanced: sight}", "loading.sampler: 'pool': expected one of its columns, site, weight, label, got 'sight'"),
        ("{balanced: site, weighted: weight}", "give either balanced or weighted, the name of a column"),
        ("blanced", "'blanced' is not a valid choice; choose from 'shuffled', 'balanced'"),
    ],
)
def test_mistakes_are_known_in_the_plan(here: Path, sampler: str, message: str) -> None:
    (here / "r.yaml").write_text(RECIPE.format(sampler=sampler))
    done = run_here("plan", "r.yaml")
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_the_order_of_other_samplers_is_as_before(tars: Any) -> None:
    plain = SampleOrder(tars.epochs, seed=3, shuffle_shards=2)
    assert (tars.order(seed=3, shuffle_shards=2)(0, 60) == plain(0, 60)).all()
    assert sorted(plain(0, 20).tolist()) == list(range(20))
