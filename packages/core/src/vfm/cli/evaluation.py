"""The command that evaluates models: eval. It writes the recipe of the evaluation and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.api.recipe_run import run_recipe
from vfm.base import stripped
from vfm.cli.command import (
    DEFAULT_STORE,
    DataOption,
    DebugOption,
    JobsOption,
    QuietOption,
    SetOption,
    StoreOption,
    command,
    console,
    note,
    show,
)
from vfm.cli.recipe import show_outcome
from vfm.cli.terminal import completion
from vfm.data.samples.columns import column_name
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.recipe.run_names import run_name
from vfm.flow.records.runs import through_link
from vfm.flow.requests.data_options import read_data_options
from vfm.interfaces import load_plugins, stage_types
from vfm.report.result_files import write_results
from vfm.report.result_tables import panel_tables


@command
def eval(  # noqa: A001
    models: Annotated[
        list[str],
        typer.Argument(
            help="[NAME=]MODEL each: folder of a checkpoint, open_clip name and tag (ViT-B-32,openai), timm name,"
            " hf-hub:org/model, or file. The first model is the baseline of the comparisons.",
            autocompletion=completion.models,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="[NAME=]PATH of a dataset, or the name of a dataset in a suite, under --root; repeatable."
        ),
    ] = None,
    data_option: DataOption = None,
    suite: Annotated[
        str | None,
        typer.Option(help="diva29, datacomp38, small, or a YAML file like them.", autocompletion=completion.suites),
    ] = None,
    root: Annotated[str, typer.Option(help="Folder of a suite's datasets.")] = ".",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Kinds of eval.*, comma-separated: zero_shot,retrieval,linear_probe,knn,... Default: the tasks of the"
            " suite, or all that fit the data."
        ),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Training images for probes and kNN. Default: `train` next to the data.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language of the captions; repeatable.")] = None,
    resize: Annotated[
        str,
        typer.Option(
            help="How images are resized to the model's size: model, shortest, longest, squash; comma-separated."
        ),
    ] = "model",
    by: Annotated[
        str,
        typer.Option(help="Column of the data, such as a site or a camera: scores are also reported for each value."),
    ] = "",
    jobs: JobsOption = 1,
    name: Annotated[str, typer.Option(help="Name of the run in the store.")] = "eval",
    out: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder of result files. Default: results/ in the run's folder."),
    ] = None,
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe, including skipped datasets; run nothing.")
    ] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Evaluate models on datasets. Finished evaluations are cached, and an interrupted run resumes."""
    from vfm.flow.requests.request import SUMMARY, EvaluationRequest, requested_recipe  # imports `vfm.data`

    manager = load_plugins()
    known = stage_types(manager)
    request = EvaluationRequest(
        models,
        data or (),
        suite or "",
        root,
        _words(tasks or ""),
        train or "",
        language or (),
        _words(resize),
        read_data_options(data_option or ()),
        by,
    )
    text = requested_recipe(request, known)
    if dry_run:
        typer.echo(text, nl=False)
        return
    where = f"the recipe of vfm eval{f' --suite {suite}' if suite else ''}"
    recipe = parse_recipe(text, known, set or (), name=run_name(name), where=where)
    listener = ConsoleListener(console, quiet=quiet)
    outcome = run_recipe(manager, recipe, make_plan(recipe, Store(store), note), Store(store), listener, jobs=jobs)
    results = out or through_link(outcome.directory / "results")
    count = write_results(outcome.directory, results)
    if not quiet:
        for table in panel_tables(outcome.directory / LINKS / SUMMARY):
            console.print(table)
        for link in sorted((outcome.directory / LINKS).iterdir()) if by else ():
            for table in panel_tables(link, f"By {column_name(by)}: "):
                console.print(table)
        show_outcome(outcome)
        show(f"{count} {'result' if count == 1 else 'results'}: {results}")


def _words(listed: str) -> list[str]:
    """Split comma-separated words."""
    return stripped(listed.split(","))
