"""The recipe of an evaluation: one stage for each task, with all models that fit, and a summary of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from pydantic import TypeAdapter

from vfm.base import UserError, did_you_mean
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.datasets import EvaluationDataset
from vfm.flow.requests.inputs import Fields, Input, stage_name
from vfm.flow.requests.suites import SkippedDataset
from vfm.interfaces import (
    AnnotatedImages,
    Artifact,
    ChoiceDataset,
    ClipCheckpoint,
    Evaluation,
    LabeledDataset,
    PairDataset,
    Ref,
    Stage,
    VideoClassifier,
    VideoDataset,
)

DEFAULT_TASKS = (
    "zero_shot",
    "retrieval",
    "mmvp_vlm",
    "video",
)  # of these, the ones that fit a dataset; none needs training images
CONTENTS: dict[type[Artifact], str] = {
    PairDataset: "captions",
    LabeledDataset: "class labels",
    ChoiceDataset: "images with statements to choose from",
    AnnotatedImages: "label maps or masks",
    VideoDataset: "videos with classes",
}
SUMMARY = "summary"  # name of the last stage
ANOTHER_NAME = "give another name: NAME=PATH, from Python {NAME: PATH}"


@dataclass
class EvaluationPlan:
    """The models to evaluate and how; `stages`, `scores` and `left_out` grow as tasks are added.

    Attributes:
        models: the models; others are compared with the first.
        known: stage types by kind.
        languages: languages of the captions; empty: those of the dataset.
        resize_modes: ways to resize images; None: the model's own.
        stages: fields of the stages.
        scores: entries of the summary.
        left_out: datasets and tasks that are not evaluated.
    """

    models: Sequence[Input]
    known: Mapping[str, type[Stage]]
    languages: Sequence[str] = ()
    resize_modes: Sequence[str | None] = (None,)
    stages: list[Fields] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[SkippedDataset] = field(default_factory=list)


def evaluation_recipe(
    plan: EvaluationPlan, datasets: Sequence[EvaluationDataset], tasks: Sequence[str], description: str
) -> str:
    """Return the recipe as YAML.

    Args:
        plan: the models, and how to evaluate them.
        datasets: the datasets.
        tasks: the tasks; empty: those of the suite, else those that fit each dataset.
        description: of the recipe.

    Raises:
        UserError: a task is unknown or fits no dataset or model, or a name is used twice.
    """
    on_data = (one for one in plan.known.values() if issubclass(one, Evaluation) and "data" in one.model_fields)
    kinds = {kind.kind_name().removeprefix("eval.") for kind in on_data}
    for task in tasks:
        if task not in kinds:
            raise UserError(f"tasks: no task {task!r}{did_you_mean(task, kinds)}")
    inputs = [*plan.models, *(part for one in datasets for part in (one.data, one.train) if part)]
    for part in inputs:
        if part.stage and part.stage not in plan.stages:
            plan.stages.append(part.stage)
    _check_names(plan.models, datasets)
    for one in datasets:
        chosen = tasks or tuple(one.scores) or tuple(task for task in DEFAULT_TASKS if _fits(plan, one, task))
        for task in chosen:
            plan.stages += _evaluations(plan, one, task)
    if not plan.scores:
        raise UserError("\n".join(f"{gap.title}: {gap.why}" for gap in plan.left_out) or _no_task(datasets))
    summary: Fields = {"kind": "eval.summary", "name": SUMMARY, "scores": plan.scores}
    if plan.left_out:
        summary["missing"] = [_non_empty(asdict(gap)) for gap in plan.left_out]
    plan.stages.append(summary)
    record = {"description": description, "stages": plan.stages}
    return dump(record)


def _evaluations(plan: EvaluationPlan, one: EvaluationDataset, task: str) -> Iterator[Fields]:
    """Yield the stages of a task on a dataset, one for each language and resize mode; note what does not fit."""
    kind = plan.known[f"eval.{task}"]
    captions = "language" in kind.model_fields and _input_ref(kind, "data").accepts(PairDataset)
    languages = ((plan.languages or one.languages) if captions else ()) or (None,)
    variants = [(language, mode) for language in languages for mode in plan.resize_modes]
    # A `way` separates results on the same dataset, so that no mean counts the same images twice.
    extra_task = "" if task in one.scores or not one.scores else task
    ways = [
        ", ".join(part for part in (extra_task, language if len(languages) > 1 else None, mode) if part)
        for language, mode in variants
    ]
    if why := _misfit(one, kind):
        plan.left_out.append(SkippedDataset(_title(one, task), one.group, why, tuple(ways)))
        return
    fitting = [model for model in plan.models if _input_ref(kind, "models").accepts(model.makes)]
    for model in plan.models:
        if model not in fitting:
            tower = "without a text tower" if model.makes is not ClipCheckpoint else "with a text tower"
            if VideoClassifier is model.makes or _input_ref(kind, "models").accepts(VideoClassifier):
                tower = f"{task} needs a {_input_ref(kind, 'models').expected}"
            why = f"{model.name} is a {model.makes.__name__}, {tower}: {task} does not apply"
            plan.left_out.append(SkippedDataset(_title(one, task), "", why))
    if not fitting:
        return
    fields: Fields = {"models": [model.ref for model in fitting], "data": one.data.ref, **one.settings}
    if "train" in kind.model_fields and one.train:
        fields["train"] = one.train.ref
    for (language, mode), way in zip(variants, ways, strict=True):
        more = {"language": language, "resize_mode": mode}
        name = "-".join(str(part) for part in (stage_name(one.data.name), task, language, mode) if part)
        yield {"kind": f"eval.{task}", "name": name, **fields, **_non_empty(more)}
        title = " ".join(part for part in (one.title or one.data.name, language, mode) if part)
        metrics = one.scores.get(task, [])
        plan.scores.append(
            {"report": name, **_non_empty({"title": title, "group": one.group, "way": way, "metrics": metrics})}
        )


def _non_empty(fields: Fields) -> Fields:
    """Return the fields that are not empty, with tuples as lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items() if value}


def _misfit(one: EvaluationDataset, kind: type[Stage]) -> str:
    """Return why a task does not fit a dataset, or an empty string if it does."""
    task, data = kind.kind_name().removeprefix("eval."), _input_ref(kind, "data")
    if not data.accepts(one.data.makes):
        needed = next((words for kind, words in CONTENTS.items() if data.accepts(kind)), data.expected)
        return f"{one.data.name} is a {one.data.makes.__name__}: {task} needs {needed}"
    train = kind.model_fields.get("train")
    if train and train.is_required() and one.train is None:
        return f"{task} needs training images: a folder `train` beside the data, or --train"
    return ""


def _fits(plan: EvaluationPlan, one: EvaluationDataset, task: str) -> bool:
    return f"eval.{task}" in plan.known and not _misfit(one, plan.known[f"eval.{task}"])


def _no_task(datasets: Iterable[EvaluationDataset]) -> str:
    names = ", ".join(f"{one.data.name} ({one.data.makes.__name__})" for one in datasets)
    return f"no task fits {names or 'no data'}; give tasks to choose others"


def _input_ref(kind: type[Stage], name: str) -> Ref[Artifact]:
    """Return a ref with the types that an input of a stage accepts."""
    annotation: Any = kind.model_fields[name].annotation
    inner: Any = get_args(annotation)[0] if getattr(annotation, "__origin__", None) is list else annotation
    ref: Ref[Artifact] = TypeAdapter(inner).validate_python("input")
    return ref


def _title(one: EvaluationDataset, task: str) -> str:
    return f"{one.title or one.data.name}, {task}"


def _check_names(models: Sequence[Input], datasets: Sequence[EvaluationDataset]) -> None:
    names = [part.name for part in (*models, *(one.data for one in datasets))]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two of the models and datasets are named {repeated[0]!r}; {ANOTHER_NAME}")
    if SUMMARY in names:
        raise UserError(f"{SUMMARY!r} is the name of the table of all results; {ANOTHER_NAME}")
