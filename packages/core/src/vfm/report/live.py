"""Draw the page of an unfinished run, with the curves of running training stages.

A run writes its page when it ends. Until then another process, `vfm report`, draws it from files that the run writes
anyway, so that training does not wait for its page. With `--watch`, the page reloads itself.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from vfm.base import UserError
from vfm.flow.plan.store import LINKS, Slot
from vfm.flow.records.manifest import read_manifest
from vfm.flow.records.run_states import is_running
from vfm.flow.records.runs import EVENTS_FILE, RUN_FILE
from vfm.interfaces import Event, LinesPanel
from vfm.report.page import Drawn, is_current, write_report
from vfm.report.run_summary import RunSummary, StageEntry, summary_of_run
from vfm.storage.integrity import read_sealed
from vfm.train.loop.training_charts import METRICS_FILE, charts_of

SECONDS = 5  # between two versions of the page
RUNNING: Literal["running"] = "running"
STOPPED: Literal["stopped"] = "stopped"


class RunLog:
    """The events of the last attempt of a run.

    Attributes:
        started: Time when it began. None: no event was written yet.
        last: Time of the last event.
        stages: Facts about each stage from the start of the run, by name.
        begun: The event of the start of each stage, by name.
        seconds: Durations of the stages that have ended, by name.
        failed: Names of the stages that have failed while others continue.
        progress: Progress of the stages in words, by name.
        end: The event that ended the run.
        has_news: Whether there were events since a caller last set this to False.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.place = 0
        self.has_news = False
        self.started: float | None = None
        self.last = 0.0
        self._forget()

    def _forget(self) -> None:
        self.stages: dict[str, dict[str, Any]] = {}
        self.begun: dict[str, Event] = {}
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self.progress: dict[str, str] = {}
        self.end: Event | None = None

    def update(self) -> None:
        """Read the lines that were written since the last call."""
        with self.file.open("rb") as stream:
            stream.seek(self.place)
            lines = stream.read().rpartition(b"\n")[0]
        self.place += len(lines) + bool(lines)
        self.has_news |= bool(lines)
        for line in lines.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line that was cut off when the process was killed
                self._apply(Event.from_json(line.decode(errors="replace")))

    def _apply(self, event: Event) -> None:
        stage = event.stage or ""
        self.last = event.time
        match event.type:
            case "run_started":
                self._forget()
                self.started = event.time
                self.stages = {stage["name"]: stage for stage in event.data["stages"]}
            case "stage_started":
                self.begun[stage] = event
            case "stage_finished":
                self.seconds[stage] = event.data["seconds"]
            case "stage_failed":
                self.failed.add(stage)
            case "progress":
                total = event.data["total"]
                of_all = "" if total is None else f" of {total:,}"
                self.progress[stage] = f"{event.data['done']:,}{of_all} {event.data['unit']}"
            case "run_finished" | "run_failed":
                self.end = event


def watch(directory: Path, page: Path, *, seconds: float = SECONDS) -> None:
    """Draw the page of a run whenever the run has news, until it ends. The last page no longer reloads itself.

    Args:
        directory: Folder of the run.
        page: File to write.
        seconds: Time between two checks of the run.

    Raises:
        UserError: If the run failed, has stopped or has written no events, or jinja2 or matplotlib is missing.
    """
    log = RunLog(directory / EVENTS_FILE)
    drawn = Drawn()
    if not log.file.is_file():
        raise UserError(f"{directory}: the run has written no events")
    log.update()
    while not log.end and not _is_killed(directory, log):
        summary = None
        if log.has_news and log.started:
            summary = _if_readable(directory, log, max(1, round(seconds)))
        if summary:
            log.has_news = False
            write_report(summary, page, drawn)
        time.sleep(seconds)
        log.update()
    if log.end and log.end.type == "run_finished":
        if not is_current(directory) or page.parent.resolve() != directory.resolve():
            write_report(summary_of_run(directory), page, drawn)
        return
    write_report(summary_so_far(directory, log, alive=False), page, drawn)
    reason = log.end.data["message"] if log.end else "no process is running it"
    raise UserError(f"the run has stopped: {reason}")


def _if_readable(directory: Path, log: RunLog, reload: int) -> RunSummary | None:
    """Summarize a run. None while one of its files is being written, or removed by `--fresh`."""
    try:
        return summary_so_far(directory, log, alive=True, reload=reload)
    except UserError:
        return None


def _is_killed(directory: Path, log: RunLog) -> bool:
    """Check whether the run has not ended, but no process works on it."""
    if is_running(directory):
        return False
    log.update()  # the run may have ended meanwhile
    return not log.end


def _slot(directory: Path, stage: str, log: RunLog) -> Slot:
    return Slot(Path(os.path.realpath(directory / LINKS / stage)).parent, log.stages[stage]["id"])


def present_summary(directory: Path) -> RunSummary:
    """Summarize a run in its current state.

    It may be running, finished, failed or stopped.

    Raises:
        UserError: If it has not finished and has written no events, or a file is missing or damaged.
    """
    if read_sealed(directory / RUN_FILE).get("seconds", 0) is not None:
        return summary_of_run(directory)
    log = RunLog(directory / EVENTS_FILE)
    if log.file.is_file():
        log.update()
    if log.started is None:
        raise UserError(f"{directory}: the run has not finished, and has written no events")
    return summary_so_far(directory, log, alive=is_running(directory))


def summary_so_far(directory: Path, log: RunLog, *, alive: bool, reload: int = 0) -> RunSummary:
    """Summarize a run that has not finished.

    Args:
        directory: Folder of the run.
        log: Events of the run.
        alive: Whether a process works on it.
        reload: Seconds after which the page reloads itself; 0: it does not.

    Raises:
        UserError: If a file of the run or of a finished stage is missing or damaged.
    """
    record = read_sealed(directory / RUN_FILE, "recipe", "description", "text", "command")
    now = time.time() if alive else log.last
    started = log.started or now
    return RunSummary(
        recipe=record["recipe"],
        started=datetime.fromtimestamp(started),
        seconds=max(0.0, now - started),
        command=record["command"],
        versions={},
        stages=[_entry(directory, name, log, now, alive) for name in log.stages],
        description=record["description"],
        recipe_text=record["text"],
        goes_on=alive,
        reload=reload,
    )


def _entry(directory: Path, name: str, log: RunLog, now: float, alive: bool) -> StageEntry:
    about = log.stages[name]
    slot = _slot(directory, name, log)
    is_cached = about["status"] == "cached"
    if (name in log.seconds or is_cached) and slot.artifact.is_dir():
        taken = log.seconds.get(name, 0.0)
        manifest = read_manifest(slot.artifact)
        return StageEntry(name, about["kind"], slot.name, about["status"], taken, slot.artifact, {}, manifest)
    if name not in log.begun:
        return StageEntry(name, about["kind"], slot.name, "waiting", 0.0, slot.artifact, {}, {})
    taken = max(0.0, now - log.begun[name].time)
    is_running_now = alive and name not in log.failed
    status = RUNNING if is_running_now else STOPPED
    progress = log.progress.get(name, "")
    charts = _charts(slot.work / METRICS_FILE)
    return StageEntry(name, about["kind"], slot.name, status, taken, slot.artifact, {}, {}, progress, charts)


def _charts(file: Path) -> list[LinesPanel]:
    """Draw the charts of a running training stage, once it has written a complete line."""
    try:
        lines = file.read_bytes().rpartition(b"\n")[0].splitlines()
        return charts_of(list(map(json.loads, lines)))
    except (OSError, ValueError, KeyError):
        return []
