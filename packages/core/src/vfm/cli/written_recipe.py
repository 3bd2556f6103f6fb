"""Commands that write a recipe and run it. The file gives the run its name, and can be changed afterwards."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pluggy
import typer

from vfm.api.recipe_run import run_recipe
from vfm.base import UserError
from vfm.cli.command import DEFAULT_STORE, console, note, show, show_results
from vfm.cli.recipe import show_outcome
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.preflight import preflight
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import stage_types

RecipeOption = Annotated[
    Path,
    typer.Option("--recipe", readable=False, help="File for the recipe; its name is the name of the run."),
]
WriteOnlyOption = Annotated[bool, typer.Option("--dry-run", help="Write the recipe, and run nothing.")]
WRITTEN = "# Written by a command, which replaces it unless you change it. Hash of the rest: "


def _signed(text: str) -> bytes:
    """Add a first line with the hash of a recipe, from which a later command sees whether it was changed."""
    return f"{WRITTEN}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n{text}".encode()


def _is_unchanged(content: bytes) -> bool:
    """Check that a file is as a command wrote it."""
    _, _, text = content.decode(errors="replace").partition("\n")
    return content == _signed(text)


def _command(recipe: Path, overrides: Sequence[str], store: Path) -> str:
    """Build the command that runs a written recipe, since the file does not hold the overrides."""
    words = ["vfm", "run", str(recipe)]
    for override in overrides:
        words += ["--set", override]
    if store != DEFAULT_STORE:
        words += ["--store", str(store)]
    return shlex.join(words)


def run_written(
    manager: pluggy.PluginManager,
    recipe: Path,
    text: str,
    overrides: Sequence[str],
    store: Path,
    *,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Write a recipe, run it, and print its results.

    Args:
        manager: The plugins.
        recipe: The file. An earlier recipe in it is replaced, unless the user wrote or changed it.
        text: The recipe.
        overrides: `NAME.FIELD=VALUE` each.
        store: Folder of artifacts and runs.
        dry_run: Only write the recipe, check it with the overrides, and print the command that runs it with them.
        quiet: Print errors only.

    Raises:
        UserError: If the file is the user's, or the recipe has a mistake.
    """
    before = recipe.read_bytes() if recipe.exists() else None
    if before is not None and not _is_unchanged(before):
        raise UserError(f"{recipe}: is not as a command wrote it; give another file by --recipe, or delete it")
    recipe.write_bytes(_signed(text))
    if not quiet:
        show(f"recipe: {recipe}")
    try:
        loaded = replace(load_recipe(str(recipe), stage_types(manager), overrides), places={})  # the user wrote no line
        if dry_run:
            if not quiet:
                show(f"run it: {_command(recipe, overrides, store)}")
            return
        plan = make_plan(loaded, Store(store), note)
        preflight(plan)
    except UserError:
        if before is None:
            recipe.unlink()
        else:
            recipe.write_bytes(before)
        raise
    outcome = run_recipe(manager, loaded, plan, Store(store), ConsoleListener(console, quiet=quiet))
    if not quiet:
        show_results(outcome.directory)
        show_outcome(outcome)
