"""Metrics that a tracker received are read back by its own library; nothing leaves this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vfm.api.progress import WarningListener
from vfm.api.recipe_run import reporting
from vfm.base import UserError
from vfm.flow.listeners.trackers import TRACKERS, open_tracker
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe
from vfm.interfaces import Event, load_plugins

RUN = "clip-1a2b3c4d"


def send(name: str, folder: Path) -> None:
    """Send two parts of one training: the second resumes from a checkpoint of step 10."""
    for status, steps in (("new", (10, 20)), ("resume", (20, 30))):
        tracker = open_tracker(name, folder, "quickstart")
        tracker.vfm_event(Event("stage_started", "clip", {"id": RUN, "kind": "clip.train", "status": status}))
        for step in steps:
            values = {"train/loss": 1 / step, "train/grad_norm": None, "val/image_retrieval_recall@1": 0.5}
            tracker.vfm_event(Event("metrics", "clip", {"step": step, "samples": step, "values": values}))
        tracker.close()


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    send("tensorboard", tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard" / RUN)).Reload()
    assert [scalar.step for scalar in read.Scalars("train/loss")] == [10, 20, 30]
    assert [scalar.value for scalar in read.Scalars("train/loss")] == pytest.approx([0.1, 0.05, 1 / 30])


def test_mlflow_in_its_file_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send("mlflow", tmp_path)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("quickstart")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (RUN, "FINISHED")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [10, 20, 30]
    assert run.data.metrics["val/image_retrieval_recall_at_1"] == 0.5


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    send("wandb", tmp_path)
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{RUN}.wandb"))
    text = b"".join(file.read_bytes() for file in files)
    assert files
    assert b"train/loss" in text


def test_trackio_in_its_local_database(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    send("trackio", tmp_path)
    logs = SQLiteStorage.get_logs("quickstart", RUN)
    assert [line["step"] for line in logs] == [10, 20, 30]
    assert json.dumps(logs[0]["train/loss"]) == "0.1"


def test_a_stage_that_starts_again_is_sent_again_and_a_line_cut_off_by_a_crash_is_ignored(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    send("tensorboard", tmp_path)
    file = tmp_path / "tensorboard-steps.jsonl"
    file.write_text(file.read_text() + '{"run": "clip-1a2b')
    send("tensorboard", tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard" / RUN)).Reload()
    assert [scalar.step for scalar in read.Scalars("train/loss")] == [10, 20, 30, 10, 20, 30]


def test_scores_and_losses_of_one_step_are_both_sent(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, "quickstart")
    for name in ("train/loss", "val/acc1", "train/loss"):
        tracker.vfm_event(Event("metrics", "clip", {"step": 10, "samples": 10, "values": {name: 0.5}}))
    tracker.close()
    read = EventAccumulator(str(tmp_path / "tensorboard" / "clip")).Reload()
    assert [len(read.Scalars(name)) for name in ("train/loss", "val/acc1")] == [1, 1]


def test_a_tracker_that_is_named_twice_is_one(tmp_path):
    where = Recipe("r", "", ()), Store(tmp_path), tmp_path / "runs/r@1"
    with reporting(load_plugins(), *where, WarningListener(), ["tensorboard", "tensorboard"]) as send:
        send(Event("metrics", "clip", {"step": 1, "samples": 1, "values": {"train/loss": 1.0}}))
    assert len(list((tmp_path / "runs/r@1/tensorboard/clip").iterdir())) == 1


def test_a_tracker_that_is_unknown_or_not_installed_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^track: expected one of tensorboard, wandb, trackio, mlflow, got wandbb"):
        open_tracker("wandbb", tmp_path, "quickstart")
    monkeypatch.setattr(TRACKERS["wandb"], "module", "no_such_module")
    with pytest.raises(UserError, match=r"^track wandb needs a package: uv pip install -e 'packages/core\[wandb\]'"):
        open_tracker("wandb", tmp_path, "quickstart")
