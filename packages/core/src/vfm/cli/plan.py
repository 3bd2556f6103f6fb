"""The command `vfm plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pluggy
import typer
from rich.markup import escape
from rich.table import Table

from vfm.base import load_function
from vfm.cli.command import (
    DEFAULT_STORE,
    DebugOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    command,
    console,
    note,
    show,
)
from vfm.flow.plan.plan import Step, make_plan
from vfm.flow.plan.preflight import check_files, preflight
from vfm.flow.plan.sampling import sampling_lines
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe, load_recipe
from vfm.flow.records.reasons import reasons
from vfm.interfaces import PEAK_TFLOPS, UTILISATION, load_plugins, stage_types

STATUS_COLOURS = {"cached": "green", "resume": "yellow", "new": "cyan"}


def planned(recipe: str, store: Path, overrides: list[str] | None) -> tuple[pluggy.PluginManager, Recipe, list[Step]]:
    """Load the plugins and a recipe, and plan it."""
    manager = load_plugins()
    loaded = load_recipe(recipe, stage_types(manager), overrides or ())
    return manager, loaded, make_plan(loaded, Store(store), note)


@command
def plan(
    recipe: RecipeArgument,
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Show parameters, memory, operations, time and disk instead.")
    ] = False,
    peak_tflops: Annotated[
        float, typer.Option(min=1e-3, help="With --estimate: peak of a device in TFLOP/s; 312 is an A100's in bf16.")
    ] = PEAK_TFLOPS,
    mfu: Annotated[
        float, typer.Option(min=1e-3, max=1, help="With --estimate: fraction of the peak that is reached.")
    ] = UTILISATION,
    gpus: Annotated[
        str, typer.Option(metavar="N,N,...", help="Show simulated training steps on these numbers of GPUs instead.")
    ] = "",
    card: Annotated[str, typer.Option(help="With --gpus: a100, a100-40, h100, h200 or b200.")] = "h100",
    check: Annotated[
        bool, typer.Option("--check", help="Also check models, data and widths of every stage, as `run` does first.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Check a recipe and show what `run` would do, without running it.

    With --estimate and --gpus, the data need not exist, because costs are computed on tensors without contents.
    """
    if gpus or estimate:
        if gpus:
            lines = load_function("vfm.cli.costs.cluster:cluster_lines")(recipe, store, set, gpus, card, mfu)
        else:
            estimate_lines = load_function("vfm.cli.costs.estimate:estimate_lines")
            lines = estimate_lines(recipe, store, set, peak_tflops * 1e12, mfu)
        for line in lines:
            _show_line(line)
        return
    _, loaded, steps = planned(recipe, store, set)
    table = Table("stage", "kind", "artifact", "status", "inputs", title=loaded.name, title_justify="left")
    for step in steps:
        status = f"[{STATUS_COLOURS[step.status]}]{step.status}[/]"
        table.add_row(step.stage.name, step.stage.kind, step.slot.name, status, escape(", ".join(step.inputs)))
    console.print(table)
    if check:
        preflight(steps)
    else:
        check_files(steps)
    for line in sampling_lines(steps):
        show(line)
    for name, reason in reasons(loaded, steps, Store(store)).items():
        show(f"{name} is new: {reason}")
    if loaded.bases:
        show(loaded.text.rstrip("\n"))


def _show_line(line: Table | str) -> None:
    if isinstance(line, str):
        show(line)
    else:  # a narrower terminal wraps the lines, since cropping the columns would cut digits
        console.print(line, width=max(console.width, 80), crop=False)
