"""The verb that judges models: eval. It writes the recipe that a user could have written, and runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vfm.cli.command import DEFAULT_STORE, DebugOption, SetOption, StoreOption, console, verb
from vfm.config import UserError, did_you_mean
from vfm.data import files

if TYPE_CHECKING:
    from vfm.flow.evaluation.recipe import Plan
    from vfm.flow.evaluation.sets import JudgedSet

RESIZE_MODES = ("model", "shortest", "longest", "squash")


@verb
def eval(  # noqa: A001
    models: Annotated[
        list[str],
        typer.Argument(
            help="[NAME=]MODEL each: a checkpoint's folder, an open_clip name and tag (ViT-B-32,openai), a timm name,"
            " hf-hub:org/model, a file. Others are compared with the first."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="[NAME=]PATH of a data set, or the name of one that is under --root; repeatable."),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="diva29, datacomp38, small, or a YAML file like them.")] = None,
    root: Annotated[str, typer.Option(help="The folder that holds a suite's data sets.")] = ".",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="zero_shot,retrieval,linear_probe,knn,...: the kinds eval.*. Default: the suite's, or what fits."
        ),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Images to learn from, for probes and kNN. Default: `train` beside the data.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Of the captions; repeatable.")] = None,
    resize: Annotated[
        str, typer.Option(help="How pictures come to the model's size: model, shortest, longest, squash, or several.")
    ] = "model",
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Evaluations at a time, each in a process, on one of the GPUs where there are some."),
    ] = 1,
    name: Annotated[str, typer.Option(help="Of the run, in the store.")] = "eval",
    out: Annotated[
        Path | None, typer.Option(readable=False, help="Folder for the results; default: results/ in the run's folder.")
    ] = None,
    set: SetOption = None,  # noqa: A002
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and what is missing; run nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what went wrong.")] = False,
    debug: DebugOption = False,
) -> None:
    """Judge models on data sets. What the store has already is not made again, so a run that was stopped goes on."""
    from vfm.cli.running import perform, tell_outcome
    from vfm.flow.evaluation.parts import model_part
    from vfm.flow.evaluation.recipe import Plan, evaluation_recipe
    from vfm.flow.plan import make_plan
    from vfm.flow.recipe import parse_recipe
    from vfm.flow.result_files import write_results
    from vfm.flow.store import Store
    from vfm.plugins import load_plugins, stage_types

    manager = load_plugins()
    known = stage_types(manager)
    modes = _words(resize)
    if wrong := [mode for mode in modes if mode not in RESIZE_MODES]:
        raise UserError(f"--resize: no way {wrong[0]!r}{did_you_mean(wrong[0], RESIZE_MODES)}")
    plan = Plan(
        [model_part(word) for word in models],
        known,
        list(dict.fromkeys(language or ())),
        [None if m == "model" else m for m in modes],
    )
    sets = _sets(plan, data or [], suite, root, train)
    wanted = _words(tasks or "")
    about = f"{', '.join(model.name for model in plan.models)} judged by vfm eval{f' on {suite}' if suite else ''}"
    text = evaluation_recipe(plan, sets, wanted, about)
    if dry_run:
        typer.echo(text, nl=False)
        return
    recipe = parse_recipe(text, known, set or (), name=name, where="the recipe of vfm eval")
    outcome = perform(manager, recipe, make_plan(recipe, Store(store)), Store(store), quiet=quiet, jobs=jobs)
    assert outcome
    (outcome.directory / "recipe.yaml").write_text(text, encoding="utf-8")
    results = out or outcome.directory / "results"
    count = write_results(outcome.directory, results)
    if not quiet:
        _show_summary(outcome.directory)
        tell_outcome(outcome)
        console.print(escape(f"{count} results: {results}"), highlight=False, soft_wrap=True)


def _words(listed: str) -> list[str]:
    """Words between commas, each once."""
    return list(dict.fromkeys(word.strip() for word in listed.split(",") if word.strip()))


def _sets(plan: Plan, data: list[str], suite: str | None, root: str, train: str | None) -> list[JudgedSet]:
    """The data sets of --data and of the suite; what the suite misses is noted in the plan."""
    from vfm.flow.evaluation.parts import split_name
    from vfm.flow.evaluation.sets import set_at
    from vfm.flow.evaluation.suites import find_sets, load_suite, set_names, set_of_suites

    if not data and not suite:
        raise UserError("nothing to judge on: give --data PATH, or --suite NAME --root DIR")
    if train and (len(data) != 1 or suite):
        raise UserError("--train goes with one --data; several have a folder `train` beside them each")
    sets = []
    for word in data:
        name, place = split_name(word)
        listed = None if files.exists(place) or "{" in place else set_of_suites(place, root, plan.known)
        if listed is None and "/" not in place and not files.exists(place):
            raise UserError(
                f"--data {place}: no such path, and no data set of a suite{did_you_mean(place, set_names())}"
            )
        sets.append(replace(listed, title=name or listed.title) if listed else set_at(word, plan.known, train))
    if suite:
        found, missing = find_sets(load_suite(suite), root, plan.known)
        plan.left_out += missing
        sets += found
    return sets


def _show_summary(directory: Path) -> None:
    """The tables at the top of the page."""
    from vfm.flow.evaluation.recipe import NAME
    from vfm.flow.run import LINKS
    from vfm.panels import TablePanel, load_panels

    for panel in load_panels(directory / LINKS / NAME):
        if isinstance(panel, TablePanel):
            table = Table(title=panel.title, caption=panel.note, title_justify="left", caption_justify="left", box=None)
            for column in panel.columns:
                table.add_column(column, overflow="fold")
            for row in panel.rows:
                table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
            console.print(table)
