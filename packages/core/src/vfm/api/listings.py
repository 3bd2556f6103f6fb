"""List the models of a store or a library, the runs of a store, and the shipped recipes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from vfm.api.paths import AnyPath
from vfm.api.results import Results, as_table
from vfm.base import UserError, load_function
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.recipe.recipe_source import about_recipe
from vfm.flow.recipe.shipped import PURPOSES, package_of, shipped_files
from vfm.flow.records.run_states import state_of
from vfm.flow.records.runs import RUN_FILE, kept_runs
from vfm.interfaces import (
    Artifact,
    ClipCheckpoint,
    DenseCheckpoint,
    GeneratorCheckpoint,
    VideoClassifier,
    VisionCheckpoint,
)
from vfm.storage.store_files import reading

MODELS = ClipCheckpoint | VisionCheckpoint | DenseCheckpoint | VideoClassifier | GeneratorCheckpoint


@dataclass(frozen=True, repr=False)
class Listing(Results):
    """A list with named columns.

    Attributes:
        name: What is listed.
        columns: Their names.
        rows: The texts or numbers of each row.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    @property
    def title(self) -> str:
        """One line about the results."""
        return f"{len(self.rows):,} {self.name}"

    def table(self) -> Any:
        """Build an Arrow table of the rows."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return as_table(rows, dict.fromkeys(self.columns, pa.string()) if not rows else {})


def list_models(name: str | None = None, *, store: AnyPath = "store") -> Listing:
    """List the models of a store, or the models of open_clip and timm, as `vfm models`.

    Args:
        name: Part of a name. Lists the models of open_clip and timm that contain it, instead of the store's.
        store: Folder of artifacts and runs.

    Returns:
        Rows with folder, kind and model, or with name, library and pretrained tags.

    Raises:
        UserError: If no model has the name.
    """
    if name is not None:
        if not isinstance(name, str):
            raise UserError(f"name: expected a text, got {name!r:.60}")
        rows: list[tuple[str, str, str]] = load_function("vfm.models.catalogue:named_models")(name)  # imports timm
        if not rows:
            raise UserError(f"no model of open_clip or timm has {name!r} in its name")
        return Listing(f"models with {name} in their name", ("name", "library", "pretrained"), rows)
    saved = []
    for run in kept_runs(Store(Path(store))):
        for stage in sorted(run.links):
            folder = run.directory / LINKS / stage
            artifact = Artifact.load(folder, verify=False) if folder.is_dir() else None
            if isinstance(artifact, MODELS):
                saved.append((str(folder), *_facts(artifact)))
    return Listing(f"models in {store}", ("folder", "kind", "model"), saved)


def _facts(model: Artifact) -> tuple[str, str]:
    """Describe a model by its kind and, if the artifact has them, its name, tasks and image size."""
    record = model.model_dump()
    words = [record.get("architecture"), record.get("model"), *record.get("tasks", ())]
    size = record.get("image_size")
    shown = [word for word in words if isinstance(word, str)]
    if size:
        shown.append(f"{size} px")
    return type(model).__name__, ", ".join(shown)


def list_runs(*, store: AnyPath = "store") -> Listing:
    """List the runs of a store, as `vfm runs`.

    Columns: run, started, state (of an unfinished run, or finished), seconds, recipe, command.
    """
    rows = []
    for run in kept_runs(Store(Path(store))):
        with reading(run.directory / RUN_FILE, "the record of a run"):
            record = run.record
            if "started" in record:
                started = f"{datetime.fromtimestamp(record['started']):%Y-%m-%d %H:%M}"
            else:
                started = ""
            state: str = state_of(run.directory, record)
            seconds = float(record["seconds"]) if state == "finished" else None
        about = record.get("file", ""), record.get("command", "")
        rows.append((run.directory.name, started, state, seconds, *about))
    return Listing(f"runs in {store}", ("run", "started", "state", "seconds", "recipe", "command"), rows)


def list_recipes() -> Listing:
    """List the shipped recipes, as `vfm recipes`.

    Columns: purpose, recipe, package, about.
    """
    rows = []
    for name, file in shipped_files("recipes").items():
        if file.parent.name in PURPOSES:
            rows.append((file.parent.name, name, package_of(file).replace("_", "-"), about_recipe(file)))
    rows.sort(key=lambda row: list(PURPOSES).index(row[0]))
    return Listing("recipes", ("purpose", "recipe", "package", "about"), rows)
