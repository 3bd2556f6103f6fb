"""The facts of a run that its report shows, read from the run's file, its links, the manifests and the events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from vfm.config import UserError
from vfm.events import Event
from vfm.flow.manifest import read_manifest
from vfm.flow.results import SeedSummary, over_seeds, reports
from vfm.flow.run import EVENTS_FILE, RUN_FILE
from vfm.flow.store import LINKS
from vfm.store_files import read_record

SHOWN_ELSEWHERE = {"kind", "name", "config", "inputs", "warnings", "bad_samples"}  # keys of a manifest
MAX_EXAMPLES = 3  # places of bad samples by reason
EVENT_TYPES = {"run_started", "stage_started", "stage_finished", "bad_sample"}  # the events that the report uses


@dataclass(frozen=True)
class StageEntry:
    """A stage of a run: the folder of its artifact, and how the artifact was made."""

    name: str
    kind: str
    id: str
    status: Literal["cached", "resume", "new"]  # before the run
    seconds: float  # in this run; about zero if the artifact was cached
    directory: Path
    inputs: Mapping[str, str]  # name of a stage, or path of an artifact -> id
    manifest: Mapping[str, Any]
    bad_examples: Mapping[str, Sequence[str]] = field(default_factory=dict)  # reason -> the places of some

    @property
    def anchor(self) -> str:
        """Id of the stage on the page. Names contain no dot, so the stage of a seed cannot collide with another."""
        return "stage-" + self.name.replace("@", ".")

    @property
    def base_name(self) -> str:
        """Name in the recipe, without the seed."""
        return self.name.partition("@")[0]

    @property
    def provenance(self) -> dict[str, Any]:
        """The keys of the manifest that the page does not show elsewhere: sources, seed, versions, commit, ..."""
        return {key: value for key, value in self.manifest.items() if key not in SHOWN_ELSEWHERE}


@dataclass(frozen=True)
class RunSummary:
    """A run: its recipe and command, and its stages in order."""

    recipe: str
    started: datetime
    seconds: float
    command: str
    versions: Mapping[str, str]
    stages: Sequence[StageEntry]
    seeds: Sequence[SeedSummary] = ()
    description: str = ""
    recipe_text: str = ""


def summary_of_run(directory: Path) -> RunSummary:
    """Return the summary of a finished run, from its folder.

    Raises:
        UserError: an artifact is missing, or a file is damaged.
    """
    record = read_record(
        directory / RUN_FILE, "recipe", "description", "text", "stages", "command", "started", "seconds"
    )
    log = EventLog.read(directory / EVENTS_FILE)
    folders = {name: (directory / LINKS / name).resolve() for name in record["stages"]}
    if missing := [name for name, folder in folders.items() if not folder.is_dir()]:
        raise UserError(f"{directory}: no artifact of {', '.join(missing)}; finish the run of {record['recipe']} first")
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    names = {manifest["identity"]: name for name, manifest in manifests.items()}
    stages = []
    for name, folder in folders.items():
        manifest = manifests[name]
        inputs = {names.get(identity, ref): identity for ref, identity in manifest["inputs"].items()}
        inputs = {ref: folders[ref].name if ref in folders else identity for ref, identity in inputs.items()}
        status, seconds = log.status.get(name, "cached"), log.seconds.get(name, 0.0)
        examples = log.bad_examples.get(folder.name, {})
        stages.append(
            StageEntry(name, manifest["kind"], folder.name, status, seconds, folder, inputs, manifest, examples)
        )
    newest = max(manifests.values(), key=lambda manifest: str(manifest["finished"]), default={})
    return RunSummary(
        recipe=record["recipe"],
        started=datetime.fromtimestamp(record["started"]),
        seconds=record["seconds"],
        command=record["command"],
        versions=newest.get("versions", {}),
        stages=stages,
        seeds=over_seeds(reports(directory)),
        description=record["description"],
        recipe_text=record["text"],
    )


@dataclass
class EventLog:
    """What the report uses of the events of a run's folder, which several runs may have written.

    Attributes:
        status: status by stage, in the last run.
        seconds: seconds by stage, in the last run.
        bad_examples: places of bad samples, by artifact and reason, of all runs: those that made cached artifacts too.
    """

    status: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bad_examples: dict[str, dict[str, list[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    @classmethod
    def read(cls, file: Path) -> EventLog:
        """Read a file of events."""
        log, making = cls(), {}
        for event in _events(file):
            stage = event.stage or ""
            if event.type == "run_started":
                log.status = {one["name"]: one["status"] for one in event.data["stages"]}
                log.seconds = {}
            elif event.type == "stage_started":
                making[stage] = event.data["id"]
            elif event.type == "stage_finished":
                log.seconds[stage] = event.data["seconds"]
            elif stage in making:
                places = log.bad_examples[making[stage]][event.data["reason"]]
                if len(places) < MAX_EXAMPLES:
                    places.append(event.data["where"])
        return log


def _events(file: Path) -> Iterator[Event]:
    """Yield the events of the types that the report uses, without lines that are incomplete after a kill."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            # Decoding JSON is slow, and most lines are progress and metrics.
            if not any(f'"type": "{name}"' in line for name in EVENT_TYPES):
                continue
            try:
                event = Event.from_json(line)
            except (ValueError, KeyError):
                continue
            if event.type in EVENT_TYPES:
                yield event
