"""The command `distill`. It writes a recipe that trains a small encoder on the features of a large one, and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.cli.command import DEFAULT_STORE, DebugOption, QuietOption, SetOption, StoreOption, command
from vfm.cli.written_recipe import RecipeOption, WriteOnlyOption, run_written
from vfm.flow.requests.distillation import DistillationRequest, distillation_recipe, student_input
from vfm.flow.requests.inputs import model_input
from vfm.interfaces import load_plugins, stage_types


@command
def distill(
    images: Annotated[str, typer.Argument(help="Your images: a folder, a list, tars or a table; no labels needed.")],
    teacher: Annotated[
        str,
        typer.Option(help="Folder of a checkpoint, open_clip name and tag (ViT-B-32,openai), timm name, hf-hub:..."),
    ],
    student: Annotated[
        str,
        typer.Option(
            help="timm name of any network, to start from random weights; or a timm name with a tag, or a folder of an"
            " encoder, to start from its weights."
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step, over all processes.")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the student's images; default: its own.")
    ] = None,
    probe: Annotated[
        str, typer.Option(help="Labelled images to evaluate teacher and student on, before and after.")
    ] = "",
    train: Annotated[str, typer.Option(help="Labelled training images of the probe.")] = "",
    recipe: RecipeOption = Path("distill.yaml"),
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: WriteOnlyOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train an encoder on another model's features of your own images. An interrupted run resumes."""
    manager = load_plugins()
    models = model_input(teacher), student_input(student)
    request = DistillationRequest(images, *models, steps, batch_size, lr, probe, train, image_size)
    text = distillation_recipe(request, stage_types(manager))
    run_written(manager, recipe, text, set or (), store, dry_run=dry_run, quiet=quiet)
