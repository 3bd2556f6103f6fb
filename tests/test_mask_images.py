"""Run the claim of EVA's mask on real images on small tables that its script writes."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import small
from tiny_images import NAMES, write_tables
from vfm.cli import app

ANALYSIS = Path(__file__).parent.parent / "packages" / "eva" / "benchmarks"
TABLES = {"pool": "pool", "pairs": "pairs", "val": "seen", "unseen_train": "unseen_train", "unseen_val": "unseen_val"}


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Write the tables of seed 1 from eight classes of noise with 64 images each, of which 60 are for pairs."""
    return write_tables(tmp_path, 64, "--claim", "mask_images")


def classes(table: Path, images_per_class: int) -> list[int]:
    """List the class of each image of a table."""
    paths = pq.read_table(table, columns=["path"])["path"].to_pylist()
    return [int(Path(path).stem) // images_per_class for path in paths]


def test_students_and_probes_share_no_class_and_no_image_with_the_pool(tables: Path) -> None:
    paths = {name: pq.read_table(tables / f"{name}-1.parquet")["path"].to_pylist() for name in TABLES.values()}
    train = [*paths["pool"], *paths["pairs"], *paths["unseen_train"]]
    assert len(train) == len(set(train)) == 64 * len(NAMES)
    assert np.bincount(classes(tables / "pool-1.parquet", 64)).tolist() == [4] * len(NAMES)
    seen = set(classes(tables / "pairs-1.parquet", 64))
    unseen = set(classes(tables / "unseen_train-1.parquet", 64))
    assert len(seen) == len(unseen) == len(NAMES) // 2
    assert seen.isdisjoint(unseen)
    assert set(classes(tables / "seen-1.parquet", 4)) == seen
    assert set(classes(tables / "unseen_val-1.parquet", 4)) == unseen


def test_captions_name_the_class_of_their_image(tables: Path) -> None:
    table = pq.read_table(tables / "pairs-1.parquet")
    for label, caption in zip(classes(tables / "pairs-1.parquet", 64), table["caption"].to_pylist(), strict=True):
        assert any(lemma in caption for lemma in NAMES[label].split(", "))


@pytest.mark.slow
def test_claim_runs_at_two_steps_and_ends_in_its_tables(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["seeds=[1, 2]"]
    settings += [f"{stage}.path={tables / table}-1.parquet" for stage, table in TABLES.items()]
    for stage in ("brief", "teacher", "eva", "unmasked", "scratch", "from_eva", "from_unmasked"):
        settings += [f"{stage}.steps=2", f"{stage}.global_batch_size=8", f"{stage}.schedule.warmup_steps=0"]
    for student in ("scratch", "from_eva", "from_unmasked"):
        settings.append(f"{student}.evaluation.every_steps=1")
    settings.append("untrained.global_batch_size=8")
    weaker = ["eva.teacher=brief", "unmasked.teacher=brief", "probe.models=[untrained, unmasked, eva, brief]"]
    for store, more in (("store", []), ("weaker", weaker)):
        words = ["run", "mask_images", "--store", str(tmp_path / store), *small.words([*settings, *more])]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    monkeypatch.syspath_prepend(ANALYSIS)
    script = importlib.import_module("mask_claim")
    capsys.readouterr()
    runs = [str(tmp_path / store / "runs" / "mask_images") for store in ("store", "weaker")]
    script.main([runs[0], "--weaker", runs[1], "--image", str(tmp_path / "arms.png")])
    printed = capsys.readouterr().out
    assert "end point: " in printed
    assert "gate, teacher minus random weights: " in printed
    assert "end point, change from the weaker teacher: " in printed
    for student in ("scratch", "from_unmasked", "from_eva"):
        assert f"| `{student}` | " in printed
    assert (tmp_path / "arms.png").stat().st_size > 10_000
