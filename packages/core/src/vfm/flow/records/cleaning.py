"""Find old runs, and artifacts that no remaining run links to or reads, for `vfm clean`.

A run links to the artifacts of its stages. An input that its recipe names by a path into the store has no link. It is
found by its folder in the recipe, or by its identity in the manifest of an artifact made from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from vfm.flow.plan.store import LINKS, SLOT_NAME, STEP_FILE, Slot, Store
from vfm.flow.records.run_states import is_running
from vfm.flow.records.runs import LIST_LOCK, RECIPE_FILE, KeptRun, kept_runs
from vfm.interfaces import FACTS_FILE, MANIFEST_FILE
from vfm.storage.locks import locked

_RUN_IN_PATH = re.compile(rf"([^/\s'\"]+)/{LINKS}/")
_IDENTITY = re.compile(r"\b[0-9a-f]{32}\b")


@contextmanager
def no_run_starts(store: Store) -> Iterator[None]:
    """Block runs that start in the store, so that none begins to use a folder that is about to be removed."""
    if not store.runs.is_dir():
        yield
        return
    with locked(store.runs / LIST_LOCK, "the list of runs"):
        yield


def older_runs(store: Store, keep: int) -> list[KeptRun]:
    """Find the runs of each name that are older than its last `keep` finished ones.

    This excludes the run of each name that was started last, runs with an active process, and runs through whose
    folders the recipe of a remaining run reads an artifact.
    """
    old: dict[str, KeptRun] = {}  # by the name of the folder
    runs = kept_runs(store)
    for name, group in groupby(runs, key=attrgetter("name")):
        same = list(group)
        last = os.path.realpath(store.run_directory(name))
        finished = [index for index, run in enumerate(same) if run.finished]
        if len(finished) < keep:
            continue
        for run in same[: finished[-keep]]:
            if os.path.realpath(run.directory) != last and not is_running(run.directory):
                old[run.directory.name] = run
    remaining = [run for run in runs if run.directory.name not in old]
    while remaining:
        recipe = _text(remaining.pop().directory / RECIPE_FILE)
        for name in _RUN_IN_PATH.findall(recipe):
            if name in old:
                remaining.append(old.pop(name))
    return list(old.values())


def unused_slots(store: Store, without: Collection[Path] = ()) -> list[Slot]:
    """Find the slots, published or left by a crash, that no remaining run links to or reads, and no process holds.

    Args:
        store: The store.
        without: Folders of runs to be removed.
    """
    slots = {slot.name: slot for slot in store.unlinked(without)}
    if not slots:
        return []
    linked: set[str] = set()
    records = []
    for run in kept_runs(store):
        if run.directory not in without:
            linked.update(run.links.values())
            records.append(run.directory / RECIPE_FILE)
    for name in linked:
        records += _records(Slot(store.root, name))
    read = _named(records, slots)
    while read:  # an artifact refers to others, such as a subset to its pool
        facts = [slots.pop(name).artifact / FACTS_FILE for name in read]
        read = _named(facts, slots)
    return list(slots.values())


def abandoned_slots(store: Store, without: Collection[Path] = ()) -> list[Slot]:
    """Find the partial results, such as checkpoints, of unfinished runs that another run of the same name followed.

    They are the folders that `unused_slots` would find without these runs, and no artifact was published from them.

    Args:
        store: The store.
        without: Folders of runs to be removed.
    """
    unfinished = {run.directory for run in kept_runs(store) if _was_followed(run, store)}
    if not unfinished:
        return []
    slots = unused_slots(store, without={*without, *unfinished})
    return [slot for slot in slots if not slot.artifact.is_dir()]


def _was_followed(run: KeptRun, store: Store) -> bool:
    """Check whether a run was not finished, is not running, and another run of its name was started after it."""
    is_last = os.path.realpath(store.run_directory(run.name)) == os.path.realpath(run.directory)
    return not (run.finished or is_last or is_running(run.directory))


def _records(slot: Slot) -> tuple[Path, Path]:
    """List the files that name the inputs of an artifact, both after it is made and while it is being made."""
    return slot.artifact / MANIFEST_FILE, slot.work / STEP_FILE


def _named(files: Iterable[Path], names: Collection[str]) -> list[str]:
    """Select the names of slots that occur in a file, by name or by the identity of the artifact."""
    names_read: set[str] = set()
    digits: set[str] = set()
    for file in files:
        text = _text(file)
        for name in SLOT_NAME.findall(text):
            names_read.add(name.lstrip("."))
        for identity in _IDENTITY.findall(text):
            digits.add(identity[:8])
    return [name for name in names if name in names_read or name.rsplit("-", 1)[-1] in digits]


def _text(file: Path) -> str:
    if not file.is_file():
        return ""
    return file.read_text(encoding="utf-8", errors="replace")
