"""The command that teaches a small encoder a large one's features: distill. It writes a recipe, and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.cli.command import (
    DEFAULT_STORE,
    DebugOption,
    SetOption,
    StoreOption,
    command,
    console,
    note,
    show,
    show_results,
)
from vfm.cli.recipe import show_outcome
from vfm.config import UserError
from vfm.flow.distillation import Distillation, distillation_recipe
from vfm.flow.evaluation.inputs import Input, model_input, saved_artifact, split_name
from vfm.flow.listeners import ConsoleListener
from vfm.flow.plan import make_plan
from vfm.flow.recipe import load_recipe
from vfm.flow.recipe_run import run_recipe
from vfm.flow.run import preflight
from vfm.flow.store import Store
from vfm.plugins import load_plugins, stage_types


@command
def distill(
    images: Annotated[str, typer.Argument(help="Your pictures: a folder, a list, tars or a table; no labels needed.")],
    teacher: Annotated[
        str,
        typer.Option(help="Folder of a checkpoint, open_clip name and tag (ViT-B-32,openai), timm name, hf-hub:..."),
    ],
    student: Annotated[
        str,
        typer.Option(
            help="timm name, from random weights; or a timm name with a tag, or a folder of an encoder, to start from"
            " its weights."
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    probe: Annotated[str, typer.Option(help="Labelled images to evaluate teacher and student on, as features.")] = "",
    train: Annotated[str, typer.Option(help="Labelled training images of the probe.")] = "",
    recipe: Annotated[
        Path,
        typer.Option("--recipe", readable=False, help="File of the recipe that is written; its name is the run's."),
    ] = Path("distill.yaml"),
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the recipe, and run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    debug: DebugOption = False,
) -> None:
    """Teach an encoder another model's features on your own pictures. An interrupted run resumes."""
    manager = load_plugins()
    known = stage_types(manager)
    given = Distillation(images, model_input(teacher), _student(student), steps, batch, lr, probe, train)
    text = distillation_recipe(given, known)
    if recipe.exists() and recipe.read_text(encoding="utf-8") != text:
        raise UserError(f"{recipe}: holds another recipe; give another file by --recipe, or delete it")
    written = not recipe.exists()
    recipe.write_text(text, encoding="utf-8")
    if not quiet:
        show(f"recipe: {recipe}")
    if dry_run:
        return
    try:
        loaded = load_recipe(str(recipe), known, set or ())
        plan = make_plan(loaded, Store(store), note)
        preflight(plan)
    except UserError:
        if written:  # the corrected command shall not be refused because of the wrong one's recipe
            recipe.unlink()
        raise
    outcome = run_recipe(manager, loaded, plan, Store(store), ConsoleListener(console, quiet=quiet))
    if not quiet:
        show_results(outcome.directory)
        show_outcome(outcome)


def _student(word: str) -> str | Input:
    """Return a timm name, or the encoder with weights that a word names."""
    name, rest = split_name(word)
    has_weights = name or saved_artifact(rest) or Path(rest).exists() or ":" in rest or "." in rest
    return model_input(word) if has_weights else word
