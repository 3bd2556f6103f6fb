"""Look at a store, or at the folder of a run."""

from __future__ import annotations

import shlex
from pathlib import Path

from vfm.flow.looks.facts import Look
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.records.runs import RUN_FILE, kept_runs

NUM_NAMES = 10  # runs and stages that are shown


def look_at_store(path: str) -> Look | None:
    """Describe a store, or a run in it. Any other folder gives None."""
    folder = Path(path)
    word = shlex.quote(path)
    if (folder / RUN_FILE).is_file():
        links = sorted(link.name for link in (folder / LINKS).glob("[!.]*"))
        return Look("a run of vfm", [f"artifacts: {_named(links)}"], commands=[f"vfm report {word}"])
    store = Store(folder)
    if not store.runs.is_dir() or not store.artifacts():
        return None
    runs = sorted({run.name for run in kept_runs(store)})
    facts = [f"artifacts: {len(store.artifacts()):,}", f"runs: {_named(runs)}"]
    return Look("a store of vfm", facts, commands=[f"vfm runs --store {word}", f"vfm models --store {word}"])


def _named(names: list[str]) -> str:
    more = ", ..." if len(names) > NUM_NAMES else ""
    return f"{len(names):,} ({', '.join(names[:NUM_NAMES])}{more})"
