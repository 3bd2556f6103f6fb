"""Verify the records, recipes, events and pages of runs, and the artifacts that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.flow.plan.roots import origin_of
from vfm.flow.plan.store import LINKS
from vfm.flow.records.runs import EVENTS_FILE, RECIPE_FILE, REPORT_FILE, RUN_FILE, KeptRun
from vfm.interfaces import MANIFEST_FILE
from vfm.storage.chained_lines import START, broken_lines
from vfm.storage.integrity import hash_file, page_is_whole, read_sealed

RECORD_KEYS = ("recipe", "seconds")  # written by every version


def run_problems(run: KeptRun) -> Iterator[str]:
    """Yield a line for each part of a run that is missing, damaged, or not as its record says."""
    try:
        record = read_sealed(run.directory / RUN_FILE, *RECORD_KEYS)
    except UserError as error:
        yield str(error)
        record = {}
    yield from wrong_events(run.directory / EVENTS_FILE, record.get("events", START))
    yield from _wrong_recipe(run.directory / RECIPE_FILE, record.get("text"))
    if record.get("events"):  # of a version that seals pages
        yield from _wrong_page(run.directory / REPORT_FILE)
    if record.get("seconds") is not None:
        yield from _wrong_artifacts(run.directory, record)


def wrong_events(file: Path, mark: Any) -> Iterator[str]:
    """Yield a line for each way in which a file of events is not the chain that was written.

    Args:
        file: The file.
        mark: Number and hash of an event, from the record of the run.
    """
    if os.path.lexists(file) and (file.is_symlink() or not file.is_file()):
        yield f"{file}: expected a regular file"
        return
    number, digest = mark if isinstance(mark, list) and len(mark) == 2 else START
    broken: list[int] = []
    has_mark = number == 0
    if file.is_file():
        with file.open("rb") as lines:
            broken, has_mark = broken_lines(lines, (number, digest))
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        yield f"{file}: line {broken[0]}{more}: not as it was written, or events before it are missing"
    elif not has_mark:
        yield f"{file}: events are missing: expected the {number:,} events of the run's record"


def _wrong_recipe(file: Path, text: Any) -> Iterator[str]:
    if not isinstance(text, str):
        return
    try:
        same = file.read_bytes() == text.encode(errors="backslashreplace")
    except OSError as error:
        yield f"{file}: not readable: {error.strerror}"
        return
    if not same:
        yield f"{file}: changed: it is not the recipe in {RUN_FILE}"


def _wrong_page(file: Path) -> Iterator[str]:
    if file.is_file() and not page_is_whole(file.read_bytes()):
        yield f"{file}: changed since it was drawn; vfm report {file.parent.name} draws it again"


def _wrong_artifacts(directory: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each stage of a finished run whose link leads elsewhere, or to something that was made since."""
    stages = record.get("stages")
    names = record.get("artifacts")
    roots = record.get("roots") or {}
    manifests = record.get("manifests") or {}
    for number, stage in enumerate(stages if isinstance(stages, list) else ()):
        link = directory / LINKS / str(stage)
        if isinstance(names, list) and number < len(names):
            name = str(names[number])
        else:
            name = ""
        artifact = directory.parent.parent / name
        if not link.is_dir():
            if link.is_symlink():
                target = os.path.basename(os.readlink(link))
            else:
                target = "an artifact"
            yield f"{link}: expected a link to {target}, which is missing; run the recipe again to make it"
        elif name and os.path.realpath(link) != os.path.realpath(artifact):
            yield f"{link}: expected a link to {name}, got one to {os.path.realpath(link)}; run the recipe again"
        elif not origin_of(artifact).root:
            continue  # damaged, or of an older version
        elif roots.get(stage, origin_of(artifact).root) != origin_of(artifact).root:
            yield f"{link}: made again since this run, and not the same; run the recipe again"
        elif stage in manifests and manifests[stage] != hash_file(artifact / MANIFEST_FILE):
            yield f"{link / MANIFEST_FILE}: written again since this run; run the recipe again to record it"
