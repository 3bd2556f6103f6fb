"""The claim of MetaCLIP on real images runs on small tables that its script writes."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from typer.testing import CliRunner

import small
from tiny_images import NAMES, SCRIPT, write_tables
from vfm.cli import app


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Write the tables of seed 1 from eight classes of noise."""
    return write_tables(tmp_path, 8, "--pairs", "3000")


def test_pools_have_a_long_tail_and_the_noise_that_they_say(tables: Path) -> None:
    large, small_pool, clean, tower, val = (
        pq.read_table(tables / f"{name}-1.parquet") for name in ("large", "small", "clean", "tower", "val")
    )
    assert large.slice(0, 300).equals(small_pool)
    assert small_pool["path"].equals(clean["path"])
    labels = np.array([int(Path(path).stem) // 8 for path in large["path"].to_pylist()])
    counts = np.sort(np.bincount(labels, minlength=len(NAMES)))[::-1]
    assert counts[4:].sum() == 0  # the four other classes are the tower's
    expected = 3000 / np.arange(1, 5) / (1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert np.abs(counts[:4] - expected).max() < 5 * np.sqrt(3000 / 4)
    assert set(labels.tolist()).isdisjoint(int(Path(path).stem) // 8 for path in tower["path"].to_pylist())
    assert {int(Path(path).stem) // 4 for path in val["path"].to_pylist()} == set(labels.tolist())
    noise = np.mean([caption.startswith("A dog of number") for caption in large["caption"].to_pylist()])
    assert abs(noise - 0.4) < 5 * np.sqrt(0.24 / 3000)
    assert not any(caption.startswith("A dog of number") for caption in clean["caption"].to_pylist())


def test_the_end_points_are_balanced_minus_random_with_p_values_by_holm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = importlib.import_module("metaclip_images")
    generator = np.random.default_rng(0)
    scores = {}
    for pool in script.POOLS:
        for model in script.arms(pool):
            for group in script.CLASSES:
                scores[model, group] = generator.normal(10, 1, 5)
    gains = {
        "clean": [2.0, 3.0, 1.0, 2.5, 1.5],
        "small": [-4.0, -4.5, -3.5, -4.2, -3.8],
        "large": [1.0, -1.0, 2.0, -2.0, 1.0],
    }
    for pool, gain in gains.items():
        scores[f"{pool}_tail", "all"] = scores[f"{pool}_random", "all"] + gain
    p_values = [scipy.stats.ttest_1samp(gain, 0).pvalue for gain in gains.values()]
    script.print_tables(scores)
    rows = {}
    for line in capsys.readouterr().out.splitlines()[-3:]:
        pool, *cells = line.strip("| ").split(" | ")
        rows[pool.strip("`")] = cells
    factors = {"clean": 2, "small": 3, "large": 1}  # the smallest of three p-values first
    for (pool, gain), p in zip(gains.items(), p_values, strict=True):
        low, high = scipy.stats.t.interval(0.95, 4, np.mean(gain), scipy.stats.sem(gain))
        assert rows[pool][0] == f"{np.mean(gain):+.1f} ({low:.1f} to {high:.1f})"
        assert rows[pool][1:] == [f"{factors[pool] * p:.2g}", ", ".join(f"{value:+.1f}" for value in gain)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/share/wordnet").is_dir(), reason="needs WordNet (Debian: wordnet-base)")
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")  # four classes, no thirds
def test_claim_runs_at_two_steps_and_ends_in_a_table_of_scores(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["seeds=[1]", "tower.steps=2", "tower.global_batch_size=8", "tower.schedule.warmup_steps=0"]
    for name, table in {
        "tower_pairs": "tower",
        "val": "val",
        "clean": "clean",
        "small": "small",
        "large": "large",
    }.items():
        settings.append(f"{name}.path={tables / table}-1.parquet")
    settings.append("blank.global_batch_size=8")
    models = set()
    for pool, numbers in {"clean": (100, 1000), "small": (1000, 10000), "large": (1000, 10000)}.items():
        for arm in ("random", "matched", "tail", *numbers):
            model = f"on_{pool}_{arm}"
            models.add(f"{pool}_{arm}")
            settings += [f"{model}.steps=2", f"{model}.global_batch_size=8", f"{model}.schedule.warmup_steps=0"]
    done = CliRunner().invoke(
        app, ["run", "metaclip_images", "--store", str(tmp_path / "store"), *small.words(settings)]
    )
    assert done.exit_code == 0, done.output
    assert "acc1" in done.stdout
    monkeypatch.syspath_prepend(SCRIPT.parent)
    splits = (tmp_path / "train.parquet", tmp_path / "val.parquet")
    script = importlib.import_module("metaclip_images")
    scores = script.read_scores(script.find_runs(tmp_path / "store" / "runs"), *splits, tables)
    assert {model for model, _ in scores} == models
    for values in scores.values():
        assert values.shape == (1,)
