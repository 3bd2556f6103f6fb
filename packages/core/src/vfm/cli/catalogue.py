"""Commands that list available models and recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vfm.base import load_function
from vfm.cli.command import DEFAULT_STORE, DebugOption, StoreOption, command, console, show
from vfm.flow.recipe.shipped import PURPOSES


@command
def models(
    name: Annotated[
        str | None, typer.Argument(help="Part of a name: list the models of open_clip and timm that contain it.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    debug: DebugOption = False,
) -> None:
    """List the models of a store, or of open_clip and timm."""
    listing = load_function("vfm.api.listings:list_models")(name, store=store)  # imports pyarrow, as below
    if name is not None or listing.rows:
        _print_table(listing.columns, listing.rows)
    else:
        show(f"no models in {store}")
    if name is None:
        show("models of open_clip and timm by a part of their name: vfm models ViT-B-32")


@command
def recipes(debug: DebugOption = False) -> None:
    """List the shipped recipes; copy one by `vfm init --like NAME`."""
    listed = load_function("vfm.api.listings:list_recipes")().rows
    for purpose, title in PURPOSES.items():
        rows = [about for of_purpose, *about in listed if of_purpose == purpose]
        if rows:
            show(f"\n{title}")
            _print_table(("recipe", "package", "about"), rows)


def _print_table(heads: tuple[str, ...], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*heads, box=None)
    table.columns[0].overflow = "fold"
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
