"""An evaluation in a folder of its own, installed beside vfm: it runs as a stage and during a training."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from outside import ROOT, Installed, checked, install

EXAMPLE = ROOT / "examples/evaluation_plugin"


def test_example_is_short_and_imports_public_names_only() -> None:
    source = (EXAMPLE / "vfm_nearest.py").read_text()
    assert len(source.splitlines()) < 50
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports if node.module} & {"vfm.plugin", "vfm.eval"}
    assert all(
        node.module in ("vfm.plugin", "vfm.eval", "vfm.statistics", "typing", "collections.abc") for node in imports
    )
    assert not any(name.name.startswith("_") for node in imports for name in node.names)


@pytest.fixture(scope="module")
def run(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the example's recipe."""
    folder = tmp_path_factory.mktemp("evaluation")
    copy = shutil.copytree(EXAMPLE, folder / "plugin")  # building leaves nothing in the source tree
    box: Installed = install(folder, wheels, "vfm-core[report]", "vfm-clip", copy)
    checked(box.vfm("run", "plugin/recipe.yaml", "--set", "runtime.threads=1"))
    return box.folder / "store/runs/recipe"


@pytest.mark.slow
def test_report_has_the_score_with_its_interval_and_the_predictions(run: Path) -> None:
    made = run / "artifacts/nearest"
    report = json.loads((made / "artifact.json").read_text())
    (metric,) = report["metrics"]
    assert (report["task"], metric["name"], metric["n"]) == ("recall", "recall@1", 600)
    assert metric["low"] < metric["value"] < metric["high"]
    assert (made / "predictions/images.parquet").is_file()
    assert json.loads((made / "results/val_clip_recall.json").read_text())["metrics"] == {"recall@1": metric["value"]}


@pytest.mark.slow
def test_training_logs_the_same_score_after_its_last_step(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "artifacts/clip/metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["val/recall@1"] for line in lines if "val/recall@1" in line}
    assert set(logged) == {20, 40}
    report = json.loads((run / "artifacts/nearest/artifact.json").read_text())
    assert logged[40] == pytest.approx(report["metrics"][0]["value"])
