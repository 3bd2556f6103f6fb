"""Listeners that send metrics to an experiment tracker: `vfm run --track NAME`. Each stage is a separate run.

Trackers read their usual environment variables: `WANDB_MODE`, `WANDB_PROJECT`, `TRACKIO_DIR`, `MLFLOW_TRACKING_URI`.
The tracker's run has the name of the stage's artifact, so a resumed training stage continues the same run. Steps that
were trained again after the last checkpoint are sent once (`SentSteps`).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from vfm.base import UserError, did_you_mean, drop_none, how_to_install
from vfm.interfaces import Event, hookimpl


class SentSteps:
    """The last step of each metric of each tracker run, kept in a file with a line for each write.

    A line that was cut off by a crash is ignored: its step is sent again.

    Args:
        file: The file. The first write creates it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.last: dict[str, dict[str, int]] = defaultdict(dict)
        for line in file.read_text().splitlines() if file.is_file() else ():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(line)
                self.last[record["run"]].update(dict.fromkeys(record["metrics"], int(record["step"])))

    def without_sent(self, run: str, values: Mapping[str, float], step: int) -> dict[str, float]:
        """Select the values whose metric was last sent at an earlier step.

        Args:
            run: Id of the tracker's run.
            values: Values by metric.
            step: The step.
        """
        last = self.last[run]
        return {name: value for name, value in values.items() if last.get(name, -1) < step}

    def add(self, run: str, metrics: Iterable[str], step: int) -> None:
        """Record that metrics of a step were sent."""
        names = list(metrics)
        self._write(run, names, step)
        self.last[run].update(dict.fromkeys(names, step))

    def forget(self, run: str) -> None:
        """Forget a run. It starts again from its first step."""
        if self.last[run]:
            self._write(run, list(self.last.pop(run)), -1)

    def _write(self, run: str, metrics: list[str], step: int) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"run": run, "step": step, "metrics": metrics}) + "\n")


class Tracker(ABC):
    """A listener that starts a run for each stage with metrics, and writes their finite values.

    Args:
        directory: Folder of vfm's run, for local files of the tracker.
        recipe: Name of the recipe.

    Raises:
        UserError: If the tracker's package is not installed.
    """

    module: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, directory: Path, recipe: str) -> None:
        self.directory = directory
        self.recipe = recipe
        self.names: dict[str, str] = {}
        self.runs: dict[str, Any] = {}
        self.sent = SentSteps(directory / f"{self.extra}-steps.jsonl")
        try:
            self.library: Any = import_module(self.module)
        except ImportError:
            raise UserError(
                f"track {self.extra} needs a package: {how_to_install(f'vfm-core[{self.extra}]')}"
            ) from None

    @hookimpl
    def vfm_event(self, event: Event) -> None:
        """Write the values of a `metrics` event that were not sent before."""
        if event.stage is None:
            return
        if event.type == "stage_started":
            self.names[event.stage] = event.data["id"]
            if event.data["status"] == "new":
                self.sent.forget(event.data["id"])
        if event.type == "metrics":
            self._write_new(event.stage, event.data["values"], event.data["step"])

    def _write_new(self, stage: str, values: Mapping[str, float | None], step: int) -> None:
        name = self.names.get(stage, stage)
        new = self.sent.without_sent(name, drop_none(values), step)
        if not new:
            return
        if stage not in self.runs:
            self.runs[stage] = self.start(name)
        self.write(self.runs[stage], new, step)
        self.sent.add(name, new, step)

    @abstractmethod
    def start(self, name: str) -> Any:
        """Start a run, or continue the run with this name."""

    @abstractmethod
    def write(self, run: Any, values: Mapping[str, float], step: int) -> None:
        """Write the metrics of a step."""

    @abstractmethod
    def end(self, run: Any) -> None:
        """End a run."""

    def close(self) -> None:
        """End all runs."""
        for run in self.runs.values():
            self.end(run)


class TensorBoard(Tracker):
    """TensorBoard's files in the folder `tensorboard` of the run."""

    module = "torch.utils.tensorboard.writer"
    extra = "tensorboard"

    def start(self, name: str) -> Any:
        """Open a writer for a folder."""
        return self.library.SummaryWriter(str(self.directory / "tensorboard" / name))

    def write(self, run: Any, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            run.add_scalar(name, value, step)
        run.flush()

    def end(self, run: Any) -> None:
        """Close the file."""
        run.close()


class Wandb(Tracker):
    """Weights & Biases. `WANDB_MODE=offline` stores everything in the folder of the run."""

    module = extra = "wandb"

    def start(self, name: str) -> Any:
        """Start a run in the recipe's project."""
        project = os.environ.get("WANDB_PROJECT", self.recipe)
        return self.library.init(
            project=project, id=name, name=name, resume="allow", dir=self.directory, reinit="create_new"
        )

    def write(self, run: Any, values: Mapping[str, float], step: int) -> None:
        """Write a row."""
        run.log(dict(values), step=step)

    def end(self, run: Any) -> None:
        """Finish the upload."""
        run.finish()


class Trackio(Tracker):
    """Trackio, whose database is a local file. `trackio show` draws it."""

    module = extra = "trackio"

    def start(self, name: str) -> Any:
        """Start a run in the recipe's project."""
        return self.library.init(project=self.recipe, name=name, resume="allow", embed=False)

    def write(self, run: Any, values: Mapping[str, float], step: int) -> None:
        """Write a row."""
        run.log(dict(values), step=step)

    def end(self, run: Any) -> None:
        """Write the remaining metrics."""
        run.finish()


class MLflow(Tracker):
    """MLflow. Without `MLFLOW_TRACKING_URI`, it writes to the folder `mlruns` of the run."""

    module = "mlflow"
    extra = "mlflow"

    def start(self, name: str) -> tuple[Any, str]:
        """Start a run in the recipe's experiment, and return the client and the identifier of the run."""
        default = (self.directory / "mlruns").resolve().as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # needs no server and no database
        client = self.library.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", default))
        known = client.get_experiment_by_name(self.recipe)
        if known:
            experiment = known.experiment_id
        else:
            experiment = client.create_experiment(self.recipe)
        same = client.search_runs([experiment], f"attributes.run_name = '{name}'", max_results=1)
        run = same[0] if same else client.create_run(experiment, run_name=name)
        return client, run.info.run_id

    def write(self, run: tuple[Any, str], values: Mapping[str, float], step: int) -> None:
        """Write metrics."""
        client, run_id = run
        for name, value in values.items():
            client.log_metric(run_id, name.replace("@", "_at_"), value, step=step)  # MLflow does not allow an @

    def end(self, run: tuple[Any, str]) -> None:
        """Mark the run as finished."""
        client, run_id = run
        client.set_terminated(run_id)


TRACKERS: dict[str, type[Tracker]] = {kind.extra: kind for kind in (TensorBoard, Wandb, Trackio, MLflow)}


def open_tracker(name: str, directory: Path, recipe: str) -> Tracker:
    """Open the tracker of a name.

    Args:
        name: Name of the tracker.
        directory: Folder of the run.
        recipe: Name of the recipe.

    Raises:
        UserError: If there is no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        raise UserError(f"track: expected one of {', '.join(TRACKERS)}, got {name}{did_you_mean(name, TRACKERS)}")
    return TRACKERS[name](directory, recipe)
