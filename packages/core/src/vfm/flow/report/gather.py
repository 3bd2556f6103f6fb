"""From the folder of a run to its report: what the run file, the links, the manifests and the events tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vfm.config import UserError
from vfm.events import Event
from vfm.flow.report.page import write_report
from vfm.flow.report.summary import RunSummary, StageEntry
from vfm.flow.results import over_seeds, reports
from vfm.flow.run import EVENTS_FILE, LINKS, RUN_FILE, read_manifest
from vfm.flow.store import read_record

REPORT_FILE = "report.html"
MAX_EXAMPLES = 3
TOLD = {"run_started", "stage_started", "stage_finished", "bad_sample"}


def report_of_run(directory: Path) -> Path:
    """Draws the report of a finished run into its folder and returns the page's path.

    Raises:
        UserError: an artifact is missing or of a package that is not installed, or jinja2 or matplotlib is missing.
    """
    page = directory / REPORT_FILE
    write_report(summary_of_run(directory), page)
    return page


def current_report(directory: Path) -> Path:
    """The page of a finished run, drawn only where the run has made something since."""
    page, run_file = directory / REPORT_FILE, directory / RUN_FILE
    if page.is_file() and page.stat().st_mtime_ns >= run_file.stat().st_mtime_ns:
        return page
    return report_of_run(directory)


def summary_of_run(directory: Path) -> RunSummary:
    """What the folder of a finished run tells."""
    record = read_record(
        directory / RUN_FILE, "recipe", "description", "text", "stages", "command", "started", "seconds"
    )
    story = Story.read(directory / EVENTS_FILE)
    folders = {name: (directory / LINKS / name).resolve() for name in record["stages"]}
    if missing := [name for name, folder in folders.items() if not folder.is_dir()]:
        raise UserError(f"{directory}: no artifact of {', '.join(missing)}; run {record['recipe']} to its end first")
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    names = {manifest["identity"]: name for name, manifest in manifests.items()}
    stages = []
    for name, folder in folders.items():
        manifest = manifests[name]
        inputs = {names.get(identity, ref): identity for ref, identity in manifest["inputs"].items()}
        inputs = {ref: folders[ref].name if ref in folders else identity for ref, identity in inputs.items()}
        status, seconds = story.status.get(name, "cached"), story.seconds.get(name, 0.0)
        examples = story.bad_examples.get(folder.name, {})
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
class Story:
    """What the events tell of the last run, and of earlier ones that made artifacts it found in the store.

    status, seconds: by stage, of the last run. bad_examples: where bad samples were, by artifact and reason.
    """

    status: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bad_examples: dict[str, dict[str, list[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    @classmethod
    def read(cls, file: Path) -> Story:
        """Reads a file of events; runs are appended to one another."""
        story, making = cls(), {}
        for event in _events(file):
            stage = event.stage or ""
            if event.type == "run_started":
                story.status = {one["name"]: one["status"] for one in event.data["stages"]}
                story.seconds = {}
            elif event.type == "stage_started":
                making[stage] = event.data["id"]
            elif event.type == "stage_finished":
                story.seconds[stage] = event.data["seconds"]
            elif stage in making:
                places = story.bad_examples[making[stage]][event.data["reason"]]
                if len(places) < MAX_EXAMPLES:
                    places.append(event.data["where"])
        return story


def _events(file: Path) -> Iterator[Event]:
    """The events that are told here; a line torn by a kill is passed over."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not any(f'"type": "{name}"' in line for name in TOLD):
                continue
            try:
                event = Event.from_json(line)
            except (ValueError, KeyError):
                continue
            if event.type in TOLD:
                yield event
