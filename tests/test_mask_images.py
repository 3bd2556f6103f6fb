"""Run the claim of EVA's mask on real images on small tables that its script writes."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

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


ENCODERS = ["eva", "unmasked"]
STUDENTS = ["scratch", "from_eva", "from_unmasked"]
BLANK = ["of_blank", "of_blank_unmasked", "from_blank", "from_blank_unmasked"]
CONTROLS = ["of_random", "masked_75", "of_pixels", "from_random", "from_masked_75", "from_pixels"]
CONTROLS += ["from_tower", "scratch_long"]
PERMUTED = ["of_permuted", "of_permuted_unmasked", "from_permuted", "from_permuted_unmasked"]
PERMUTED_RECIPE = Path(__file__).parent.parent / "examples" / "target_plugin" / "mask_images_permuted.yaml"


def run(recipe: str, store: Path, tables: Path, trained: list[str], *more: str) -> Path:
    """Run a recipe with two seeds, at two steps a training, and return the folder of its run."""
    settings = ["seeds=[1, 2]", "untrained.global_batch_size=8", *more]
    settings += [f"{stage}.path={tables / table}-1.parquet" for stage, table in TABLES.items()]
    for stage in ("brief", "teacher", *trained):
        settings += [f"{stage}.steps=2", f"{stage}.global_batch_size=8", f"{stage}.schedule.warmup_steps=0"]
    for stage in trained:
        if stage.startswith(("from", "scratch")):
            settings.append(f"{stage}.evaluation.every_steps=1")
    done = CliRunner().invoke(app, ["run", recipe, "--store", str(store), *small.words(settings)])
    assert done.exit_code == 0, done.output
    return store / "runs" / Path(recipe).stem


def printed_by(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    script.main(list(arguments))
    return capsys.readouterr().out


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ANALYSIS)
    return importlib.import_module("mask_claim")


@pytest.mark.slow
def test_claim_runs_at_two_steps_and_ends_in_its_tables(
    tables: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    of_brief = ["eva.teacher=brief", "unmasked.teacher=brief", "probe.models=[untrained, unmasked, eva, brief]"]
    stronger = run("mask_images", tmp_path / "stronger", tables, ENCODERS + STUDENTS)
    weaker = run("mask_images", tmp_path / "weaker", tables, ENCODERS + STUDENTS, *of_brief)
    image = tmp_path / "arms.png"
    printed = printed_by(script, capsys, str(stronger), "--weaker", str(weaker), "--image", str(image))
    assert "end point: " in printed
    assert "gate, teacher minus random weights: " in printed
    assert "end point, change from the weaker teacher: " in printed
    for student in STUDENTS:
        assert f"| `{student}` | " in printed
    assert image.stat().st_size > 10_000
    (weaker / "artifacts" / "curves@2").unlink()
    with pytest.raises(SystemExit):
        script.main([str(stronger), "--weaker", str(weaker)])
    assert "--weaker: expected the seeds 1, 2, got 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("target_plugin")
def test_features_of_other_images_run_at_two_steps_and_end_in_their_scores(
    tables: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [*ENCODERS, *STUDENTS, *PERMUTED]
    made = run(str(PERMUTED_RECIPE), tmp_path, tables, trained, "seeds=[1]")
    printed = printed_by(script, capsys, str(made))
    for student in ("from_permuted", "from_permuted_unmasked"):
        assert re.search(rf"^\| `{student}` \| [\d.]+ \| [\d.]+ \|$", printed, re.MULTILINE)
    for encoder in ("of_permuted", "of_permuted_unmasked"):
        assert re.search(rf"^linear probe of unseen classes, {encoder}: [\d.]+ %$", printed, re.MULTILINE)
    losses = {}
    for encoder in ("eva", "of_permuted"):
        first, *_ = (made / "artifacts" / f"{encoder}@1" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses[encoder] = json.loads(first)["train/loss"]
    assert losses["eva"] != losses["of_permuted"]  # of the same initial weights and images


@pytest.mark.slow
def test_untrained_teacher_and_controls_run_at_two_steps_and_end_in_their_tables(
    tables: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [*ENCODERS, *STUDENTS, *BLANK]
    printed = printed_by(
        script, capsys, str(run("mask_images_blank", tmp_path, tables, trained, "blank.global_batch_size=8"))
    )
    assert "end point: " in printed
    assert "from_unmasked - from_blank_unmasked" in printed
    assert "| `of_blank_unmasked` | " in printed

    trained += CONTROLS
    more = ["seeds=[1]", "blank.global_batch_size=8"]
    printed = printed_by(script, capsys, str(run("mask_images_controls", tmp_path, tables, trained, *more)))
    for student in ("from_random", "from_masked_75", "from_pixels", "from_tower", "scratch_long"):
        assert re.search(rf"^\| `{student}` \| [\d.]+ \| [\d.]+ \|$", printed, re.MULTILINE)
    assert re.search(r"^linear probe of unseen classes, of_pixels: [\d.]+ %$", printed, re.MULTILINE)


@pytest.mark.slow
def test_scratch_for_as_many_steps_runs_at_two_steps_and_ends_in_its_tests(
    tables: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [*ENCODERS, *STUDENTS, "scratch_long"]
    printed = printed_by(script, capsys, str(run("mask_images_long", tmp_path, tables, trained)))
    assert re.search(r"^\| `scratch_long` \| [\d.]+ \(", printed, re.MULTILINE)
    assert "end point: " in printed
    assert "from_unmasked - scratch_long" in printed
