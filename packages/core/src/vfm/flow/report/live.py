"""The page of a run that goes on: its events as they come, the curves of its trainings, and a page that reloads itself.

A run writes its page when it ends. Until then another process, `vfm report --watch`, draws it from the files that the
run writes anyway, so that a training does not wait for its page.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from vfm.config import UserError
from vfm.events import Event
from vfm.flow.locks import is_locked
from vfm.flow.manifest import read_manifest
from vfm.flow.report.page import Drawn, is_current, write_report
from vfm.flow.report.run_summary import RunSummary, StageEntry, summary_of_run
from vfm.flow.runs import EVENTS_FILE, RECIPE_FILE, RUN_FILE
from vfm.flow.store import LINKS, Slot
from vfm.integrity import read_sealed
from vfm.panels import LinesPanel
from vfm.training_charts import METRICS_FILE, charts_of

SECONDS = 5  # between two pages
RUNNING: Literal["running"] = "running"
STOPPED: Literal["stopped"] = "stopped"


class RunLog:
    """The events of a run in its last go.

    Attributes:
        started: when it began; None: no event was written yet.
        stages: what the run said about each stage at its start, by name.
        begun: the event with which a stage began, by name.
        seconds: of the stages that have ended, by name.
        progress: words on how far a stage is, by name.
        end: the event that ended the run.
        has_news: whether there were events since somebody set this to False.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.place, self.has_news = file, 0, False
        self.started: float | None = None
        self._forget()

    def _forget(self) -> None:
        self.stages: dict[str, dict[str, Any]] = {}
        self.begun: dict[str, Event] = {}
        self.seconds: dict[str, float] = {}
        self.progress: dict[str, str] = {}
        self.end: Event | None = None

    def update(self) -> None:
        """Read the lines that were written since the last time."""
        with self.file.open("rb") as stream:
            stream.seek(self.place)
            lines = stream.read().rpartition(b"\n")[0]
        self.place += len(lines) + bool(lines)
        self.has_news |= bool(lines)
        for line in lines.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line that a kill has cut off
                self._apply(Event.from_json(line.decode(errors="replace")))

    def _apply(self, event: Event) -> None:
        stage = event.stage or ""
        match event.type:
            case "run_started":
                self._forget()
                self.started = event.time
                self.stages = {one["name"]: one for one in event.data["stages"]}
            case "stage_started":
                self.begun[stage] = event
            case "stage_finished":
                self.seconds[stage] = event.data["seconds"]
            case "progress":
                self.progress[stage] = f"{event.data['done']:,} of {event.data['total']:,} {event.data['unit']}"
            case "run_finished" | "run_failed":
                self.end = event

    @property
    def running(self) -> list[str]:
        """The stages that have begun and not ended."""
        return [name for name in self.begun if name not in self.seconds]


def watch(directory: Path, page: Path, *, seconds: float = SECONDS) -> None:
    """Draw the page of a run whenever the run has news, until it ends; the last page no longer reloads itself.

    Args:
        directory: folder of the run.
        page: file to write.
        seconds: time between two looks at the run.

    Raises:
        UserError: the run failed, has stopped or has written no events, or jinja2 or matplotlib is missing.
    """
    log, drawn = RunLog(directory / EVENTS_FILE), Drawn()
    if not log.file.is_file():
        raise UserError(f"{directory}: the run has written no events")
    log.update()
    while not log.end and not _is_killed(directory, log):
        if log.has_news and log.started and (summary := _if_readable(directory, log, max(1, round(seconds)))):
            log.has_news = False
            write_report(summary, page, drawn)
        time.sleep(seconds)
        log.update()
    if log.end and log.end.type == "run_finished":
        if not is_current(directory) or page.parent.resolve() != directory.resolve():
            write_report(summary_of_run(directory), page, drawn)
        return
    write_report(summary_so_far(directory, log), page, drawn)
    raise UserError(f"the run has stopped: {log.end.data['message'] if log.end else 'no process is running it'}")


def _if_readable(directory: Path, log: RunLog, reload: int) -> RunSummary | None:
    """Return what is known about a run; None while one of its files is being written, or removed by `--fresh`."""
    try:
        return summary_so_far(directory, log, reload=reload)
    except UserError:
        return None


def _is_killed(directory: Path, log: RunLog) -> bool:
    """Return whether nobody works on the run: not the process that writes the events, nor those of a begun stage."""
    files = [log.file, *(_slot(directory, name, log).lock_file for name in log.running)]
    if any(is_locked(file) for file in files):
        return False
    log.update()  # the run may have ended meanwhile
    return not log.end


def _slot(directory: Path, stage: str, log: RunLog) -> Slot:
    return Slot(Path(os.path.realpath(directory / LINKS / stage)).parent, log.stages[stage]["id"])


def summary_so_far(directory: Path, log: RunLog, *, reload: int = 0) -> RunSummary:
    """Return what is known about a run that has not finished.

    Args:
        directory: its folder.
        log: its events.
        reload: seconds after which the page reloads itself; 0: the run has stopped.

    Raises:
        UserError: a file of the run or of a finished stage is missing or damaged.
    """
    recipe: dict[str, Any] = {}
    with suppress(OSError, yaml.YAMLError):
        recipe = yaml.safe_load((directory / RECIPE_FILE).read_text(encoding="utf-8")) or {}
    now, started = time.time(), log.started or time.time()
    return RunSummary(
        recipe=read_sealed(directory / RUN_FILE, "recipe")["recipe"],
        started=datetime.fromtimestamp(started),
        seconds=max(0.0, now - started),
        command="",
        versions={},
        stages=[_entry(directory, name, log, now, reload > 0) for name in log.stages],
        description=str(recipe.get("description") or ""),
        reload=reload,
    )


def _entry(directory: Path, name: str, log: RunLog, now: float, alive: bool) -> StageEntry:
    about, slot = log.stages[name], _slot(directory, name, log)
    is_cached = about["status"] == "cached"
    if (name in log.seconds or is_cached) and slot.artifact.is_dir():
        taken = log.seconds.get(name, 0.0)
        manifest = read_manifest(slot.artifact)
        return StageEntry(name, about["kind"], slot.name, about["status"], taken, slot.artifact, {}, manifest)
    if name not in log.begun:
        return StageEntry(name, about["kind"], slot.name, "waiting", 0.0, slot.artifact, {}, {})
    taken, status = max(0.0, now - log.begun[name].time), RUNNING if alive else STOPPED
    progress, charts = log.progress.get(name, ""), _charts(slot.work / METRICS_FILE)
    return StageEntry(name, about["kind"], slot.name, status, taken, slot.artifact, {}, {}, progress, charts)


def _charts(file: Path) -> list[LinesPanel]:
    """Return the charts of a training that runs; none if it has written no complete line."""
    try:
        return charts_of([json.loads(line) for line in file.read_bytes().rpartition(b"\n")[0].splitlines()])
    except (OSError, ValueError, KeyError):
        return []
