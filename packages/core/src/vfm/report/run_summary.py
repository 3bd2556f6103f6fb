"""The facts of a run for its report, read from the run's file, its links, the manifests and the events."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from vfm.base import UserError, drop_keys
from vfm.flow.plan.store import LINKS
from vfm.flow.records.manifest import read_manifest
from vfm.flow.records.runs import EVENTS_FILE, RUN_FILE, hash_of_record
from vfm.interfaces import MANIFEST_FILE, Event, LinesPanel, Panel, Series
from vfm.report.results import SeedSummary, over_seeds, reports
from vfm.storage.folder_checks import check_folder
from vfm.storage.integrity import read_sealed
from vfm.storage.store_files import reading

# Keys of a manifest that the page shows in other places.
SHOWN_ELSEWHERE = {"kind", "name", "config", "inputs", "warnings", "lacks_data", "bad_samples", "bad_examples", "files"}
EVENT_TYPES = {"run_started", "stage_finished", "metrics"}  # the only events that the report uses
MAX_POINTS = 300  # of a curve
CHARTS = [  # metric of an event, title, note
    ("train/samples_per_second", "Samples per second", "Over all processes."),
    ("train/data_wait_pct", "Waiting for data, %", "Share of the time in which the training step had no batch."),
    ("sys/mem_gib", "Memory, GiB", "Of the GPU if there is one, else of the process."),
]


@dataclass(frozen=True)
class StageEntry:
    """A stage of a run, with the folder of its artifact and how the artifact was made."""

    name: str
    kind: str
    id: str
    status: Literal[
        "cached", "resume", "new", "running", "stopped", "waiting"
    ]  # the first three are from before the run
    seconds: float  # duration in this run; about zero if the artifact was cached
    directory: Path
    inputs: Mapping[str, str]  # name of a stage, or path of an artifact -> id
    manifest: Mapping[str, Any]
    progress: str = ""  # progress of a running stage
    charts: Sequence[Panel] = ()  # charts of a running stage, which has no panels yet
    speed: Sequence[Panel] = ()  # charts of a training run's speed, waits and memory

    @property
    def bad_examples(self) -> Mapping[str, Sequence[str]]:
        """Places of some bad samples, by reason."""
        places: Mapping[str, Sequence[str]] = self.manifest.get("bad_examples", {})
        return places

    @property
    def anchor(self) -> str:
        """Id of the stage on the page. Names contain no dot, so the stage of a seed cannot collide with another."""
        return "stage-" + self.name.replace("@", ".")

    @property
    def base_name(self) -> str:
        """Name in the recipe, without the seed."""
        return self.name.split("@", 1)[0]

    @property
    def provenance(self) -> dict[str, Any]:
        """Keys of the manifest that the page does not show elsewhere, such as sources, seed, versions and commit."""
        return drop_keys(self.manifest, SHOWN_ELSEWHERE)


@dataclass(frozen=True)
class RunSummary:
    """A run, with its recipe, its command, and its stages in order."""

    recipe: str
    started: datetime
    seconds: float
    command: str
    versions: Mapping[str, str]
    stages: Sequence[StageEntry]
    seeds: Sequence[SeedSummary] = ()
    description: str = ""
    recipe_text: str = ""
    record_hash: str = ""  # hash of the file of the run, which shows whether a page is current
    goes_on: bool = False  # whether a process works on the run
    reload: int = 0  # seconds after which the page of a running run reloads itself; 0: never


def summary_of_run(directory: Path) -> RunSummary:
    """Summarize a finished run, from its folder.

    Raises:
        UserError: If an artifact is missing, or a file is damaged.
    """
    record_hash = hash_of_record(directory)  # read first: if the run continues meanwhile, the page is drawn again
    record = read_sealed(
        directory / RUN_FILE, "recipe", "description", "text", "stages", "command", "started", "seconds"
    )
    with reading(directory / RUN_FILE, "the record of a run"):
        started = datetime.fromtimestamp(record["started"])
        seconds = float(record["seconds"])
    log = EventLog.read(directory / EVENTS_FILE)
    folders = {}
    missing = []
    for name in record["stages"]:
        folders[name] = Path(os.path.realpath(directory / LINKS / name))
        if not folders[name].is_dir():
            missing.append(name)
    if missing:
        raise UserError(f"{directory}: no artifact of {', '.join(missing)}; finish the run of {record['recipe']} first")
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    names = {}  # stage that made each artifact, by identity
    for name, folder in folders.items():
        check_folder(folder, MANIFEST_FILE, "panels/")
        names[manifests[name]["identity"]] = name
    stages = []
    for name, folder in folders.items():
        manifest = manifests[name]
        inputs = {}
        for ref, identity in manifest["inputs"].items():
            maker = names.get(identity, ref)
            inputs[maker] = folders[maker].name if maker in folders else identity
        status = log.status.get(name, "cached")
        taken = log.seconds.get(name, 0.0)
        entry = StageEntry(name, manifest["kind"], folder.name, status, taken, folder, inputs, manifest)
        stages.append(replace(entry, speed=speed_charts(log.metrics.get(name, ()))))
    return RunSummary(
        recipe=record["recipe"],
        started=started,
        seconds=seconds,
        command=record["command"],
        versions=list(manifests.values())[-1].get("versions", {}) if manifests else {},
        stages=stages,
        seeds=over_seeds(reports(directory)),
        description=record["description"],
        recipe_text=record["text"],
        record_hash=record_hash,
    )


def speed_charts(steps: Sequence[Mapping[str, Any]]) -> list[LinesPanel]:
    """Build charts of a training run's speed, waits for data and memory, where they were logged.

    Args:
        steps: Data of the `metrics` events of a stage, each with `step` and `values`.
    """
    shown = steps[:: -(-len(steps) // MAX_POINTS) or 1]
    charts = []
    for order, (metric, title, note) in enumerate(CHARTS):
        points = [(step["step"], step["values"][metric]) for step in shown if metric in step["values"]]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            series = [Series(name=title, x=list(x), y=list(y))]
            charts.append(
                LinesPanel(title=title, note=note, order=90 + order, series=series, x_label="step", y_label="")
            )
    return charts


@dataclass
class EventLog:
    """Facts from the events of a run's folder.

    The events may be from several attempts. The facts are from the last attempt that made an artifact, like the record
    of the run.

    Attributes:
        status: Status by stage.
        seconds: Seconds by stage.
        metrics: Logged metrics by stage.
    """

    status: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: defaultdict[str, list[Mapping[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls, file: Path) -> EventLog:
        """Read a file of events."""
        log = cls()
        last_that_made = None
        for event in _events(file):
            if event.type == "run_started":
                log = cls({stage["name"]: stage["status"] for stage in event.data["stages"]})
            elif event.type == "metrics":
                log.metrics[event.stage or ""].append(event.data)
            else:
                log.seconds[event.stage or ""] = event.data["seconds"]
                last_that_made = last_that_made if event.data.get("cached") else log
        return last_that_made or log


def _events(file: Path) -> Iterator[Event]:
    """Yield the events of the types that the report uses, without lines that were cut off when a process was killed."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            # Decoding JSON is slow, and most lines are progress.
            if not any(f'"type": "{name}"' in line for name in EVENT_TYPES):
                continue
            try:
                event = Event.from_json(line)
            except ValueError:
                continue
            if event.type in EVENT_TYPES:
                yield event
