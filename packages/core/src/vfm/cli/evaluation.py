"""The command that evaluates models: eval. It writes the recipe of the evaluation, and runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vfm import files
from vfm.cli.command import DEFAULT_STORE, DebugOption, SetOption, StoreOption, command, console, note, show
from vfm.cli.recipe import run_recipe, show_outcome
from vfm.config import UserError, did_you_mean
from vfm.flow.plan import make_plan
from vfm.flow.recipe import parse_recipe
from vfm.flow.result_files import write_results
from vfm.flow.run_names import run_name
from vfm.flow.runs import through_link
from vfm.flow.store import LINKS, Store
from vfm.panels import TablePanel, load_panels
from vfm.plugins import load_plugins, stage_types

if TYPE_CHECKING:  # `vfm.flow.evaluation` imports `vfm.data`, and --help stays quick
    from vfm.flow.evaluation.datasets import EvaluationDataset
    from vfm.flow.evaluation.recipe import EvaluationPlan

RESIZE_MODES = ("model", "shortest", "longest", "squash")


@command
def eval(  # noqa: A001
    models: Annotated[
        list[str],
        typer.Argument(
            help="[NAME=]MODEL each: folder of a checkpoint, open_clip name and tag (ViT-B-32,openai), timm name,"
            " hf-hub:org/model, or file. The first model is the baseline of the comparisons."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="[NAME=]PATH of a dataset, or the name of a dataset in a suite, under --root; repeatable."
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="diva29, datacomp38, small, or a YAML file like them.")] = None,
    root: Annotated[str, typer.Option(help="Folder of a suite's datasets.")] = ".",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Kinds of eval.*, comma-separated: zero_shot,retrieval,linear_probe,knn,... Default: those of the"
            " suite, or those that fit the data."
        ),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Training images for probes and kNN. Default: `train` beside the data.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Language of the captions; repeatable.")] = None,
    resize: Annotated[
        str,
        typer.Option(
            help="How images are resized to the model's size: model, shortest, longest, squash; comma-separated."
        ),
    ] = "model",
    jobs: Annotated[
        int, typer.Option(min=1, help="Evaluations at a time, each in a process and on one of the GPUs, if any.")
    ] = 1,
    name: Annotated[str, typer.Option(help="Name of the run in the store.")] = "eval",
    out: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder of result files. Default: results/ in the run's folder."),
    ] = None,
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe, with what is left out; run nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    debug: DebugOption = False,
) -> None:
    """Evaluate models on datasets. Finished evaluations are cached, and an interrupted run resumes."""
    from vfm.flow.evaluation.inputs import model_input
    from vfm.flow.evaluation.recipe import EvaluationPlan, evaluation_recipe

    manager = load_plugins()
    known = stage_types(manager)
    modes = _words(resize)
    if wrong := [mode for mode in modes if mode not in RESIZE_MODES]:
        raise UserError(f"--resize: {wrong[0]!r} is not a valid mode{did_you_mean(wrong[0], RESIZE_MODES)}")
    plan = EvaluationPlan(
        [model_input(word) for word in models],
        known,
        list(dict.fromkeys(language or ())),
        [None if mode == "model" else mode for mode in modes],
    )
    datasets = _datasets(plan, data or [], suite, root, train)
    about = f"Evaluation of {', '.join(model.name for model in plan.models)}{f' on {suite}' if suite else ''}"
    text = evaluation_recipe(plan, datasets, _words(tasks or ""), about)
    if dry_run:
        typer.echo(text, nl=False)
        return
    recipe = parse_recipe(text, known, set or (), name=run_name(name), where="the recipe of vfm eval")
    outcome = run_recipe(manager, recipe, make_plan(recipe, Store(store), note), Store(store), quiet=quiet, jobs=jobs)
    assert outcome
    results = out or through_link(outcome.directory / "results")
    count = write_results(outcome.directory, results)
    if not quiet:
        _show_summary(outcome.directory)
        show_outcome(outcome)
        show(f"{count} results: {results}")


def _words(listed: str) -> list[str]:
    """Return comma-separated words, without duplicates."""
    return list(dict.fromkeys(word.strip() for word in listed.split(",") if word.strip()))


def _datasets(
    plan: EvaluationPlan, data: list[str], suite: str | None, root: str, train: str | None
) -> list[EvaluationDataset]:
    """Return the datasets of --data and of the suite; those that the suite lacks are noted in the plan."""
    from vfm.flow.evaluation.datasets import dataset_at
    from vfm.flow.evaluation.inputs import split_name
    from vfm.flow.evaluation.suites import find_datasets, load_suite, shipped_dataset, shipped_names

    if not data and not suite:
        raise UserError("no datasets: give --data PATH, or --suite NAME --root DIR")
    if train and (len(data) != 1 or suite):
        raise UserError("--train needs exactly one --data and no --suite; other data have a folder `train` each")
    datasets = []
    for word in data:
        name, place = split_name(word)
        exists = files.exists(place)
        shipped = None if exists or "{" in place else shipped_dataset(place, root, plan.known)
        if shipped is None and "/" not in place and not exists:
            raise UserError(
                f"--data {place}: no such path, and no suite has such a dataset{did_you_mean(place, shipped_names())}"
            )
        datasets.append(
            replace(shipped, title=name or shipped.title) if shipped else dataset_at(word, plan.known, train)
        )
    if suite:
        found, left_out = find_datasets(load_suite(suite, plan.known), root, plan.known)
        plan.left_out += left_out
        datasets += found
    return datasets


def _show_summary(directory: Path) -> None:
    """Print the tables of the summary."""
    from vfm.flow.evaluation.recipe import SUMMARY

    for panel in load_panels(directory / LINKS / SUMMARY):
        if isinstance(panel, TablePanel):
            table = Table(title=panel.title, caption=panel.note, title_justify="left", caption_justify="left", box=None)
            for column in panel.columns:
                table.add_column(column, overflow="fold")
            for row in panel.rows:
                table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
            console.print(table)
