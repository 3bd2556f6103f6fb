"""Verbs that keep the place: clean, init."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vfm.cli.command import DEFAULT_STORE, DebugOption, StoreOption, console, verb
from vfm.config import UserError
from vfm.flow.recipe import SHIPPED, find_recipe
from vfm.flow.store import Store


@verb
def clean(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    debug: DebugOption = False,
) -> None:
    """Remove artifacts that no run links to, and what was left of making them."""
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; --store says where artifacts and runs are")
    slots = Store(store).unlinked()
    for slot in slots:
        size = sum(file.stat().st_size for path in slot.folders for file in path.rglob("*") if file.is_file())
        if not dry_run:
            slot.discard()
        console.print(f"{'would remove' if dry_run else 'removed'} {slot.name} ({size / 1e6:,.1f} MB)", highlight=False)
    if not slots:
        console.print("nothing to remove: every artifact belongs to a run")


@verb
def init(
    path: Annotated[Path, typer.Argument(readable=False, help="The file to write.")] = Path("recipe.yaml"),
    like: Annotated[str, typer.Option(help="The shipped recipe to start from.")] = "pairs",
    debug: DebugOption = False,
) -> None:
    """Write a commented recipe to start from."""
    if path.exists():
        raise UserError(f"{path} is there already; give another name, or remove it first")
    shutil.copyfile(find_recipe(like), path)
    known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    told = f"wrote {path} (from '{like}'; there are: {known}); run it with: vfm run {shlex.quote(str(path))}"
    console.print(escape(told), highlight=False, soft_wrap=True)
