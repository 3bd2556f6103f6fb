"""Evaluate models from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vfm.api.paths import PATHS, AnyPath, as_place, as_words
from vfm.api.progress import listener
from vfm.api.runs import Run, check_not_a_worker, run_loaded, text_recipe
from vfm.base import UserError
from vfm.flow.execution.parallel import Jobs
from vfm.flow.plan.store import LINKS
from vfm.flow.records.runs import through_link
from vfm.flow.requests.request import SUMMARY, EvaluationRequest, requested_recipe
from vfm.interfaces import Artifact, load_plugins, stage_types
from vfm.report.result_files import write_results
from vfm.report.result_tables import panel_tables

Named = AnyPath | Artifact | Iterable[AnyPath | Artifact] | Mapping[str, AnyPath | Artifact]


@dataclass(frozen=True, repr=False)
class EvaluationRun(Run):
    """A finished evaluation of models. `show()` prints one table of all datasets and models."""

    def shown(self) -> Iterable[Table]:
        """Build the tables that `vfm eval` prints."""
        return panel_tables(self.directory / LINKS / SUMMARY)


def evaluate(
    models: Named,
    data: Named = (),
    tasks: str | Sequence[str] = (),
    *,
    suite: str = "",
    root: AnyPath = ".",
    train: AnyPath | Artifact = "",
    languages: str | Sequence[str] = (),
    resize: str | Sequence[str] = ("model",),
    by: str = "",
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as the option of `vfm eval`)
    store: AnyPath = "store",
    name: str = "eval",
    jobs: Jobs = 1,
    progress: bool = True,
) -> EvaluationRun:
    """Evaluate models on datasets, all on the same items. Finished evaluations are cached.

    Args:
        models: One or several models, the first of which is the baseline of the comparisons: the artifact or folder of
            a checkpoint, open_clip name and tag (`ViT-B-32,openai`), timm name, `hf-hub:org/model`, or file. The keys
            of a mapping name the models.
        data: One or several datasets: artifacts, paths, or names of a suite's datasets below `root`. The keys of a
            mapping name the datasets.
        tasks: Kinds of `eval.*`: zero_shot, retrieval, linear_probe, knn, .... Default: all that fit the data.
        suite: diva29, datacomp38, small, or a YAML file like them.
        root: Folder of a suite's datasets.
        train: Training images for probes and kNN. Default: `train` next to the data.
        languages: Languages of the captions.
        resize: How images are resized to the model's size: model, shortest, longest, squash.
        by: Column of the data, for whose values scores are also reported.
        set: Values by `NAME.FIELD` that override the evaluation's recipe.
        store: Folder of artifacts and runs.
        name: Name of the run in the store.
        jobs: Number of concurrent evaluations, each in a process. "ray": as many as a Ray cluster has room for.
        progress: Show progress bars and messages.

    Returns:
        The run, whose table has a row for each metric of each model, with intervals and paired tests.

    Raises:
        UserError: If there is no such model, dataset or task, or nothing fits.
    """
    check_not_a_worker("vfm.evaluate")
    manager = load_plugins()
    known = stage_types(manager)
    request = EvaluationRequest(
        models=_words("models", models),
        data=_words("data", data),
        suite=suite,
        root=as_place(root),
        tasks=as_words(tasks),
        train=as_place(train),
        languages=as_words(languages),
        resize=as_words(resize),
        by=by,
    )
    if not request.models:
        raise UserError("evaluate: expected at least one model, got none")
    where = f"the recipe of vfm.evaluate{f' with suite {suite}' if suite else ''}"
    recipe = text_recipe(requested_recipe(request, known), known, set, name, where)
    done = run_loaded(manager, recipe, Path(store), listener(progress), jobs=jobs)
    write_results(done.directory, through_link(done.directory / "results"))
    return EvaluationRun(done.directory, done.seconds, done.page)


def _words(argument: str, values: Named) -> list[str]:
    """Convert an argument to words of `vfm eval`: `[NAME=]PLACE`.

    Raises:
        UserError: If it is not a path, an artifact, or a collection of them.
    """
    if isinstance(values, (*PATHS, Artifact)):
        return [as_place(values)]
    if isinstance(values, Mapping):
        return [f"{name}={as_place(value)}" for name, value in values.items()]
    if not isinstance(values, Iterable):
        raise UserError(f"{argument}: expected paths or artifacts, got a {type(values).__name__}")
    words = []
    for value in values:
        if not isinstance(value, (*PATHS, Artifact)):
            raise UserError(f"{argument}: expected paths or artifacts, got a {type(value).__name__}")
        words.append(as_place(value))
    return words
