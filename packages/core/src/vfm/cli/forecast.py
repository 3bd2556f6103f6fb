"""The command `forecast`. It writes a recipe that predicts the gain of diffusion feedback, and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.cli.command import DEFAULT_STORE, DebugOption, QuietOption, SetOption, StoreOption, command
from vfm.cli.written_recipe import RecipeOption, WriteOnlyOption, run_written
from vfm.flow.requests.forecast import forecast_recipe
from vfm.flow.requests.inputs import model_input
from vfm.interfaces import load_plugins, stage_types


@command
def forecast(
    clip: Annotated[
        str, typer.Argument(help="[NAME=]MODEL: folder of a checkpoint, open_clip name and tag (ViT-L-14,openai).")
    ],
    generator: Annotated[
        str, typer.Option(help="Folder of a diva.prior or of a model in diffusers' layout, or hf-hub:org/model.")
    ],
    pairs: Annotated[
        str,
        typer.Option(help="Pairs of two images and two statements: MMVP-VLM's folder, or any format of data.choices."),
    ],
    preset: Annotated[str, typer.Option(help="Preset of diva.tune whose GPU hours are computed.")] = "recommended",
    recipe: RecipeOption = Path("forecast.yaml"),
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: WriteOnlyOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Predict the gain of diffusion feedback on pairs."""
    manager = load_plugins()
    text = forecast_recipe(model_input(clip), generator, pairs, preset, stage_types(manager))
    run_written(manager, recipe, text, set or (), store, dry_run=dry_run, quiet=quiet)
