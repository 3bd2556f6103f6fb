"""The command that trains a CLIP model further on one's own pairs: finetune. It writes a recipe, and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.cli.command import DEFAULT_STORE, DebugOption, SetOption, StoreOption, command
from vfm.cli.written_recipe import RecipeOption, WriteOnlyOption, run_written
from vfm.flow.evaluation.inputs import model_input
from vfm.flow.finetuning import Finetuning, finetuning_recipe
from vfm.plugins import load_plugins, stage_types


@command
def finetune(
    model: Annotated[
        str,
        typer.Argument(help="CLIP model: folder of a checkpoint, open_clip name and tag (ViT-B-32,openai), hf-hub:..."),
    ],
    data: Annotated[str, typer.Argument(help="Your pairs: tars, a folder, a table, or the folder of a dataset.")],
    val: Annotated[str, typer.Option(help="Pairs to evaluate the models on, before and after.")] = "",
    general: Annotated[
        str, typer.Option(help="Labelled images of another kind, to measure what the model keeps.")
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per step.")] = 256,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-5,
    lock: Annotated[
        bool, typer.Option("--lock", help="Train the text tower only (LiT): for fewer than a thousand pairs.")
    ] = False,
    recipe: RecipeOption = Path("finetune.yaml"),
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: WriteOnlyOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    debug: DebugOption = False,
) -> None:
    """Train a CLIP model further on your own pairs. An interrupted run resumes.

    The run makes `tuned`, and `wise` half way between the first weights and those, which keeps more of what the model
    knew. Captions that are not in `txt`: --set 'pool.texts={en: json.en}'.
    """
    manager = load_plugins()
    given = Finetuning(model_input(model), data, val, general, steps, batch, lr, lock)
    text = finetuning_recipe(given, stage_types(manager))
    run_written(manager, recipe, text, set or (), store, dry_run=dry_run, quiet=quiet)
