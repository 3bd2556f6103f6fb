"""The commands `finetune` and `classify`. They write a recipe for the user's pairs or labels, and run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.base import load_function
from vfm.cli.command import DEFAULT_STORE, DataOption, DebugOption, QuietOption, SetOption, StoreOption, command
from vfm.cli.terminal import completion
from vfm.cli.written_recipe import RecipeOption, WriteOnlyOption, run_written
from vfm.flow.requests.data_options import read_data_options
from vfm.flow.requests.finetuning import LOW_RANK_LR, LR, RANK, Classification, Finetuning, finetuning_recipe
from vfm.flow.requests.inputs import model_input
from vfm.interfaces import load_plugins, stage_types


@command
def finetune(
    model: Annotated[
        str,
        typer.Argument(
            help="CLIP model: folder of a checkpoint, open_clip name and tag (ViT-B-32,openai), hf-hub:...",
            autocompletion=completion.models,
        ),
    ],
    data: Annotated[str, typer.Argument(help="Your pairs: tars, a folder, a table, or the folder of a dataset.")],
    data_option: DataOption = None,
    val: Annotated[str, typer.Option(help="Pairs to evaluate the models on, before and after.")] = "",
    general: Annotated[str, typer.Option(help="Labelled images of another kind, to measure forgetting.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs per step, over all processes.")] = 256,
    lr: Annotated[
        float | None,
        typer.Option(min=0, show_default=False, help=f"Peak learning rate: {LR:g}, with --lora {LOW_RANK_LR:g}."),
    ] = None,
    lock: Annotated[
        bool, typer.Option("--lock", help="Train only the text tower (LiT): for fewer than a thousand pairs.")
    ] = False,
    lora: Annotated[
        bool,
        typer.Option("--lora", help="Train LoRA weights of both towers, or with --lock of the text tower."),
    ] = False,
    rank: Annotated[int | None, typer.Option(min=1, show_default=False, help=f"Rank of --lora: {RANK}.")] = None,
    recipe: RecipeOption = Path("finetune.yaml"),
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: WriteOnlyOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Fine-tune a CLIP model on your own pairs. An interrupted run resumes.

    The run makes `tuned`, and `wise`, the average of the initial and the tuned weights. `wise` forgets less. Captions
    that are not in `txt`: --set 'pool.texts={en: json.en}'.
    """
    manager = load_plugins()
    options = read_data_options(data_option or ())
    request = Finetuning(model_input(model), data, val, general, steps, batch_size, lr, lock, lora, rank, options)
    text = finetuning_recipe(request, stage_types(manager))
    run_written(manager, recipe, text, set or (), store, dry_run=dry_run, quiet=quiet)


@command
def classify(
    train: Annotated[
        str,
        typer.Argument(help="Labelled images: class folders, tars with cls, Parquet, a table, or splits."),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="timm name, open_clip name and tag (ViT-B-32,openai), folder of a checkpoint, NAME,FILE of weights,"
            " hf-hub:..., or NAME,none for random weights."
        ),
    ],
    val: Annotated[
        str, typer.Option(help="Labelled images to evaluate on. Default: val or test next to the training images.")
    ] = "",
    method: Annotated[
        str,
        typer.Option(
            help="probe: train a linear layer on frozen features; knn: nearest neighbours; finetune: train all weights."
        ),
    ] = "probe",
    data_option: DataOption = None,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the training images, for finetune.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step, for finetune.")] = 128,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate, for finetune.")] = 1e-4,
    recipe: RecipeOption = Path("classify.yaml"),
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: WriteOnlyOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a classifier on your labelled images, and evaluate it."""
    manager = load_plugins()
    options = read_data_options(data_option or ())
    make_recipe = load_function("vfm.flow.requests.classification:classification_recipe")  # imports `vfm.data`
    request = Classification(train, val, model_input(model), method, epochs, batch_size, lr, options)
    text = make_recipe(request, stage_types(manager))
    run_written(manager, recipe, text, set or (), store, dry_run=dry_run, quiet=quiet)
