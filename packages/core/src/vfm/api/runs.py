"""Run a recipe from Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pluggy
import pyarrow as pa
from rich.table import Table

from vfm.api.paths import AnyPath, as_place, as_words
from vfm.api.progress import Listener, listener
from vfm.api.recipe_run import run_recipe
from vfm.api.results import Results, as_table
from vfm.base import UserError, did_you_mean
from vfm.flow.execution.parallel import Jobs
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.recipe.recipe import Recipe, load_recipe, parse_recipe
from vfm.flow.recipe.run_names import run_name
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.records.runs import RUN_FILE
from vfm.interfaces import Artifact, Comparison, Event, Report, Stage, load_plugins, naming_extras, stage_types
from vfm.report.result_tables import result_tables
from vfm.report.results import over_seeds, reports
from vfm.storage.integrity import read_sealed

Known = Mapping[str, type[Stage]]


@dataclass(frozen=True, repr=False)
class Run(Results):
    """A finished run of a recipe: `run["clip"]` is the artifact of the stage `clip`.

    Attributes:
        directory: Folder of the run, with its resolved recipe, events and links to the artifacts.
        seconds: Duration. Cached stages take no time.
        page: Path of the report, or the reason why it was not drawn.
    """

    directory: Path
    seconds: float
    page: str

    @property
    def title(self) -> str:
        """One line about the results."""
        return f"{self.directory.name} in {self.seconds:.0f} s; report: {self.page}"

    @property
    def stages(self) -> list[str]:
        """Names of the stages in order."""
        names: list[str] = read_sealed(self.directory / RUN_FILE, "stages")["stages"]
        return names

    def __getitem__(self, stage: str) -> Artifact:
        """Load the artifact of a stage. Its `path` is the folder.

        Raises:
            UserError: If there is no such stage, or a file of its artifact is missing or damaged.
        """
        if stage not in self.stages:
            raise UserError(f"{self.directory.name}: no stage is named {stage!r}{did_you_mean(stage, self.stages)}")
        return Artifact.load(self.directory / LINKS / stage)  # by the link, whose name tables show

    @cached_property
    def reports(self) -> dict[str, Report]:
        """The reports of the evaluations by stage name."""
        return reports(self.directory)

    def table(self) -> Any:
        """Build an Arrow table with a row for each metric of each model. Means over seeds are in `means`.

        With `seeds` in the recipe, the reports and models of a seed are named `zero_shot@0` and `clip@0`.

        Columns: report, task, dataset, metric, model, value, low and high (95 % interval), n, chance, unit, baseline,
        difference, p_value (uncorrected; `shown` and the report correct it for the number of comparisons).
        """
        rows = chain.from_iterable(_rows(name, report) for name, report in self.reports.items())
        return as_table(list(rows), COLUMNS)

    def means(self) -> Any:
        """Build an Arrow table with a row for the mean of each metric of each model over the seeds of the recipe.

        Columns: report, task, dataset, metric, model, mean, low and high (95 % t-interval), seeds (their number),
        chance, unit, baseline, difference, p_value (Student's paired test over the seeds, uncorrected).
        """
        return as_table(list(_means(self.reports)), MEANS)

    def preview(self) -> Any:
        """Build the table of metrics, or of the artifact of each stage if nothing was evaluated."""
        if self.reports:
            return self.table()
        links = self.directory / LINKS
        rows = [{"stage": stage, "artifact": (links / stage).resolve().name} for stage in self.stages]
        return as_table(rows, {"stage": pa.string(), "artifact": pa.string()})

    def shown(self) -> Iterable[Table]:
        """Build the tables that `vfm run` prints, or the table of artifacts if nothing was evaluated."""
        return result_tables(self.directory) or super().shown()


ABOUT = dict.fromkeys(("report", "task", "dataset", "metric", "model"), pa.string())
TESTED = {
    **dict.fromkeys(("unit", "baseline"), pa.string()),
    **dict.fromkeys(("difference", "p_value"), pa.float64()),
}
INTERVAL = dict.fromkeys(("low", "high"), pa.float64())
COLUMNS = {**ABOUT, "value": pa.float64(), **INTERVAL, "n": pa.int64(), "chance": pa.float64(), **TESTED}
MEANS = {**ABOUT, "mean": pa.float64(), **INTERVAL, "seeds": pa.int64(), "chance": pa.float64(), **TESTED}


def _rows(name: str, report: Report) -> Iterator[dict[str, Any]]:
    tests = {(test.metric, test.model): test for test in report.comparisons}
    for metric in report.metrics:
        yield {
            "report": name,
            "task": report.task,
            "dataset": report.dataset,
            "metric": metric.name,
            "model": metric.model,
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "n": metric.n,
            "chance": metric.chance,
            "unit": metric.unit,
            **_test(tests.get((metric.name, metric.model))),
        }


def _means(loaded: Mapping[str, Report]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the means over seeds. Task, dataset and chance are those of the first seed."""
    firsts: dict[tuple[str, str], Mapping[str, Any]] = {}
    for name, report in loaded.items():
        for row in _rows(name, report):
            firsts.setdefault((name.split("@", 1)[0], row["metric"]), row)
    for summary in over_seeds(dict(loaded)):
        first = firsts[summary.report, summary.metric]
        yield {
            "report": summary.report,
            "task": first["task"],
            "dataset": first["dataset"].split("@", 1)[0],
            "metric": summary.metric,
            "model": summary.model,
            "mean": summary.mean,
            "low": summary.low,
            "high": summary.high,
            "seeds": len(summary.values),
            "chance": first["chance"],
            "unit": summary.unit,
            **_test(summary.comparison),
        }


def _test(test: Comparison | None) -> dict[str, Any]:
    return {
        "baseline": test.baseline if test else None,
        "difference": test.difference if test else None,
        "p_value": test.p_value if test else None,
    }


def run(
    recipe: AnyPath | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as the option of `vfm run`)
    store: AnyPath = "store",
    name: str = "recipe",
    fresh: bool = False,
    track: str | Sequence[str] = (),
    jobs: Jobs = 1,
    progress: bool = True,
) -> Run:
    """Run a recipe. Finished stages are cached, interrupted ones resume.

    Args:
        recipe: Path of a YAML file, name of a shipped recipe, or the recipe itself, `{"stages": [...]}`.
        set: Values by `NAME.FIELD` that override the recipe: `{"clip.steps": 400, "runtime.threads": 1}`.
        store: Folder of artifacts and runs.
        name: Name of the run in the store, for a recipe without a file.
        fresh: Run every stage again, cached or not.
        track: Also send metrics to tensorboard, wandb, trackio or mlflow.
        jobs: Number of concurrent stages. Each has a process, a part of the cores and a GPU, if any. "ray": as many as
            a Ray cluster has room for.
        progress: Show progress bars and messages.

    Returns:
        The run: its artifacts by stage, and the metrics of its evaluations.

    Raises:
        UserError: If the recipe or a stage has a mistake. The message has one line for each.
    """
    check_not_a_worker("vfm.run")
    manager = load_plugins()
    known = stage_types(manager)
    if isinstance(recipe, Mapping):
        text = dump(_plain(recipe))
        loaded = text_recipe(text, known, set, name, "the recipe")
    else:
        loaded = load_recipe(as_place(recipe), known, overrides(set))
    shown = listener(progress)
    return run_loaded(manager, loaded, Path(store), shown, fresh=fresh, track=as_words(track), jobs=jobs)


def check_not_a_worker(call: str) -> None:
    """Check that this is not a worker process that imports the script.

    There, the call would run again and wait forever.

    Raises:
        UserError: If it is.
    """
    imported = sys.modules.get("__mp_main__")  # name of the script in workers, until multiprocessing has imported it
    if imported is not None and imported is not sys.modules["__main__"]:
        raise UserError(f"{call}: workers import the script: put its calls below `if __name__ == '__main__':`")


def run_loaded(manager: pluggy.PluginManager, recipe: Recipe, store: Path, shown: Listener, **options: Any) -> Run:
    """Plan and run a checked recipe.

    Args:
        manager: Plugins.
        recipe: The recipe.
        store: Folder of artifacts and runs.
        shown: Listener that shows the progress.
        **options: Options of `run_recipe`.
    """
    opened = Store(store)
    with naming_extras("this run"), _without_script():
        steps = make_plan(recipe, opened, lambda line: shown.vfm_event(Event("log", None, {"message": line})))
        result = run_recipe(manager, recipe, steps, opened, shown, **options)
    return Run(result.directory, result.seconds, result.page)


@contextmanager
def _without_script() -> Iterator[None]:
    """Keep worker processes from importing the script.

    Its calls would run again there, and wait for this run. Workers find the script through `__main__`. They do not need
    it, since stages come from plugins, so a script needs no `if __name__ == "__main__":`.
    """
    main = sys.modules["__main__"]
    spec = main.__spec__
    file = main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def text_recipe(text: str, known: Known, settings: Mapping[str, Any] | None, name: str, where: str) -> Recipe:
    """Parse and check the text of a recipe.

    Args:
        text: The recipe.
        known: Installed stages by kind.
        settings: Values that override the recipe.
        name: Name of the recipe.
        where: Source of the text, for messages.
    """
    return parse_recipe(text, known, overrides(settings), name=run_name(name), where=where)


def overrides(settings: Mapping[str, Any] | None) -> list[str]:
    """Convert values by `NAME.FIELD` to the words of `--set`.

    Raises:
        UserError: If they are not a mapping, or a value is not plain data.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(f"set: expected a mapping of NAME.FIELD to values, got a {type(settings).__name__}")
    return [f"{key}={json.dumps(_plain(value), ensure_ascii=False)}" for key, value in (settings or {}).items()]


def _plain(value: Any) -> Any:
    """Convert a value to plain YAML data.

    Paths become texts, tuples become lists, and NumPy's numbers become Python's.

    Raises:
        UserError: If it is not plain data.
    """
    try:
        return json.loads(json.dumps(value, default=_as_plain))
    except (TypeError, ValueError) as error:
        raise UserError(f"expected plain values in a recipe: {error}") from None


def _as_plain(value: Any) -> Any:
    if isinstance(value, Artifact):
        return str(value.path)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r:.60} is a {type(value).__name__}")
