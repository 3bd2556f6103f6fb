"""Commands that list available models and recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vfm.base import UserError, load_function
from vfm.cli.command import (
    DEFAULT_STORE,
    DebugOption,
    StoreOption,
    command,
    console,
    show,
)
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.recipe.recipe_source import about_recipe
from vfm.flow.recipe.shipped import PURPOSES, package_of, shipped_files
from vfm.flow.records.runs import kept_runs
from vfm.interfaces import (
    Artifact,
    ClipCheckpoint,
    DenseCheckpoint,
    GeneratorCheckpoint,
    VideoClassifier,
    VisionCheckpoint,
    load_plugins,
    stage_types,
)

MODELS = ClipCheckpoint | VisionCheckpoint | DenseCheckpoint | VideoClassifier | GeneratorCheckpoint


@command
def models(
    name: Annotated[
        str | None, typer.Argument(help="Part of a name: list the models of open_clip and timm that contain it.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    debug: DebugOption = False,
) -> None:
    """List the models of a store, or of open_clip and timm."""
    if name is not None:
        rows: list[tuple[str, str, str]] = load_function("vfm.models.catalogue:named_models")(name)  # imports timm
        if not rows:
            raise UserError(f"no model of open_clip or timm has {name!r} in its name")
        _print_table(("name", "library", "pretrained"), rows)
        return
    stage_types(load_plugins())  # imports the artifact types of plugins
    saved = []
    for run in kept_runs(Store(store)):
        for stage in sorted(run.links):
            folder = run.directory / LINKS / stage
            artifact = Artifact.load(folder, verify=False) if folder.is_dir() else None
            if isinstance(artifact, MODELS):
                saved.append((str(folder), *_facts(artifact)))
    if saved:
        _print_table(("folder", "kind", "model"), saved)
    else:
        show(f"no models in {store}")
    show("models of open_clip and timm by a part of their name: vfm models ViT-B-32")


def _facts(model: Artifact) -> tuple[str, str]:
    """Describe a model: its kind, and its name, tasks and image size if the artifact has them."""
    record = model.model_dump()
    words = [record.get("architecture"), record.get("model"), *record.get("tasks", ())]
    size = record.get("image_size")
    shown = [word for word in words if isinstance(word, str)]
    if size:
        shown.append(f"{size} px")
    return type(model).__name__, ", ".join(shown)


@command
def recipes(debug: DebugOption = False) -> None:
    """List the shipped recipes; copy one by `vfm init --like NAME`."""
    for purpose, title in PURPOSES.items():
        rows = [
            (name, package_of(file).replace("_", "-"), about_recipe(file))
            for name, file in shipped_files("recipes").items()
            if file.parent.name == purpose
        ]
        if rows:
            show(f"\n{title}")
            _print_table(("recipe", "package", "about"), rows)


def _print_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*heads, box=None)
    table.columns[0].overflow = "fold"
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
