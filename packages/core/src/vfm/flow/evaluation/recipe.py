"""From models, data sets and tasks to a recipe: one evaluation a task, of all models that fit, and a summary of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter

from vfm.artifacts import Artifact, ChoiceDataset, ClipCheckpoint, LabeledDataset, PairDataset
from vfm.config import UserError, did_you_mean
from vfm.flow.evaluation.parts import Fields, Part
from vfm.flow.evaluation.sets import JudgedSet
from vfm.flow.evaluation.suites import Missing
from vfm.interfaces import Evaluation
from vfm.stage import Ref, Stage

DEFAULT_TASKS = ("zero_shot", "retrieval", "mmvp_vlm")  # what needs no training images, of each set what fits
IN_WORDS: dict[type[Artifact], str] = {
    PairDataset: "captions",
    LabeledDataset: "class labels",
    ChoiceDataset: "images with statements to choose from",
}
NAME = "summary"


@dataclass
class Plan:
    """What is asked for, as far as it is known; `stages` and `left_out` grow as tasks are laid out."""

    models: Sequence[Part]
    known: Mapping[str, type[Stage]]
    languages: Sequence[str] = ()
    resize_modes: Sequence[str | None] = (None,)
    stages: list[Fields] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[Missing] = field(default_factory=list)


def evaluation_recipe(plan: Plan, sets: Sequence[JudgedSet], tasks: Sequence[str], description: str) -> str:
    """The recipe as YAML.

    Args:
        plan: who is judged, and how.
        sets: on what.
        tasks: by what; none: those of the suite, else of each set what fits.
        description: of the recipe.

    Raises:
        UserError: an unknown task, a task that no set or no model fits, a name that two have.
    """
    judging = (one for one in plan.known.values() if issubclass(one, Evaluation) and "data" in one.model_fields)
    kinds = {kind.kind_name().removeprefix("eval.") for kind in judging}
    for task in tasks:
        if task not in kinds:
            raise UserError(f"--tasks: no task {task!r}{did_you_mean(task, kinds)}")
    parts = [*plan.models, *(part for one in sets for part in (one.data, one.train) if part)]
    for part in parts:
        if part.stage and part.stage not in plan.stages:
            plan.stages.append(part.stage)
    _check_names(plan.models, sets)
    for one in sets:
        wanted = tasks or tuple(one.scores) or tuple(task for task in DEFAULT_TASKS if _fits(plan, one, task))
        for task in wanted:
            plan.stages += _evaluations(plan, one, task)
    if not plan.scores:
        raise UserError("\n".join(f"{gap.title}: {gap.why}" for gap in plan.left_out) or _no_task(sets))
    summary: Fields = {"kind": "eval.summary", "name": NAME, "scores": plan.scores}
    if plan.left_out:
        summary["missing"] = [_set_fields(asdict(gap)) for gap in plan.left_out]
    plan.stages.append(summary)
    record = {"description": description, "stages": plan.stages}
    return yaml.dump(record, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _evaluations(plan: Plan, one: JudgedSet, task: str) -> Iterator[Fields]:
    """The stages of a task on a set, one a language and a way to resize; what does not fit is noted as left out."""
    kind = plan.known[f"eval.{task}"]
    captions = "language" in kind.model_fields and _target(kind, "data").accepts(PairDataset)
    languages = ((plan.languages or one.languages) if captions else ()) or (None,)
    asked = [(language, mode) for language in languages for mode in plan.resize_modes]
    # What sets two rows of a set apart, so that no mean takes the same pictures for two pieces of evidence.
    beside = "" if task in one.scores or not one.scores else task
    ways = [
        ", ".join(part for part in (beside, language if len(languages) > 1 else None, mode) if part)
        for language, mode in asked
    ]
    if why := _misfit(one, kind):
        plan.left_out.append(Missing(_title(one, task), one.group, why, tuple(ways)))
        return
    fitting = [model for model in plan.models if _target(kind, "models").accepts(model.makes)]
    for model in plan.models:
        if model not in fitting:
            what = "no text tower" if model.makes is not ClipCheckpoint else "a text tower"
            why = f"{model.name} is a {model.makes.__name__}, with {what}: it cannot do {task}"
            plan.left_out.append(Missing(_title(one, task), "", why))
    if not fitting:
        return
    fields: Fields = {"models": [model.ref for model in fitting], "data": one.data.ref, **one.settings}
    if "train" in kind.model_fields and one.train:
        fields["train"] = one.train.ref
    for (language, mode), way in zip(asked, ways, strict=True):
        more = {"language": language, "resize_mode": mode}
        name = "-".join(str(part) for part in (one.data.name.replace(".", "-"), task, language, mode) if part)
        yield {"kind": f"eval.{task}", "name": name, **fields, **_set_fields(more)}
        title = " ".join(part for part in (one.title or one.data.name, language, mode) if part)
        metrics = one.scores.get(task, [])
        plan.scores.append(
            {"report": name, **_set_fields({"title": title, "group": one.group, "way": way, "metrics": metrics})}
        )


def _set_fields(fields: Fields) -> Fields:
    """Without those that say nothing."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items() if value}


def _misfit(one: JudgedSet, kind: type[Stage]) -> str:
    """Why a task cannot be done on a set; nothing where it can."""
    task, data = kind.kind_name().removeprefix("eval."), _target(kind, "data")
    if not data.accepts(one.data.makes):
        lack = next((words for kind, words in IN_WORDS.items() if data.accepts(kind)), data.wanted)
        return f"{one.data.name} is a {one.data.makes.__name__}: {task} wants {lack}"
    if "train" in kind.model_fields and one.train is None:
        return f"{task} wants images to learn from: a folder `train` beside the data, or --train"
    return ""


def _fits(plan: Plan, one: JudgedSet, task: str) -> bool:
    return f"eval.{task}" in plan.known and not _misfit(one, plan.known[f"eval.{task}"])


def _no_task(sets: Iterable[JudgedSet]) -> str:
    names = ", ".join(f"{one.data.name} ({one.data.makes.__name__})" for one in sets)
    return f"no task is known for {names or 'no data'}; say --tasks"


def _target(kind: type[Stage], name: str) -> Ref[Artifact]:
    """What an input of a stage takes."""
    annotation: Any = kind.model_fields[name].annotation
    inner: Any = get_args(annotation)[0] if getattr(annotation, "__origin__", None) is list else annotation
    ref: Ref[Artifact] = TypeAdapter(inner).validate_python("input")
    return ref


def _title(one: JudgedSet, task: str) -> str:
    return f"{one.title or one.data.name}, {task}"


def _check_names(models: Sequence[Part], sets: Sequence[JudgedSet]) -> None:
    names = [part.name for part in (*models, *(one.data for one in sets))]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two of the models and data sets are called {twice[0]!r}; give a name of its own: NAME=...")
    if NAME in names:
        raise UserError(f"{NAME!r} is what the table of all results is called; give another name: NAME=...")


class _Plain(yaml.SafeDumper):
    """Writes a list that occurs twice twice: an anchor says nothing to a reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
