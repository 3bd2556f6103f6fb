"""The recipe of an evaluation: one stage for each task, with all models that fit, and a summary of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, get_args

from pydantic import TypeAdapter

from vfm.base import UserError, did_you_mean, repeated
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.datasets import EvaluationDataset
from vfm.flow.requests.dense_tasks import dense_tasks, import_settings, no_common_task
from vfm.flow.requests.inputs import IMPORT_DENSE, Fields, Input, stage_name
from vfm.flow.requests.suites import SkippedDataset
from vfm.interfaces import (
    AnnotatedImages,
    Artifact,
    ChoiceDataset,
    ClipCheckpoint,
    DenseCheckpoint,
    Evaluation,
    LabeledDataset,
    PairDataset,
    Ref,
    Stage,
    VideoClassifier,
    VideoDataset,
)

# Run those of these tasks that fit a dataset, and the dense tasks. They need no training images.
DEFAULT_TASKS = ("zero_shot", "retrieval", "mmvp_vlm", "video")
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
    """The models to evaluate and how. `stages`, `scores` and `left_out` grow as tasks are added.

    Attributes:
        models: The models. The others are compared with the first.
        known: Stage types by kind.
        languages: Languages of the captions. Empty: languages of the dataset.
        resize_modes: Ways to resize images. None: the model's way.
        suite: The list of datasets, for messages. Empty: none.
        stages: Fields of the stages.
        scores: Entries of the summary.
        left_out: Datasets and tasks that are not evaluated.
    """

    models: Sequence[Input]
    known: Mapping[str, type[Stage]]
    languages: Sequence[str] = ()
    resize_modes: Sequence[str | None] = (None,)
    suite: str = ""
    stages: list[Fields] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[SkippedDataset] = field(default_factory=list)


def evaluation_recipe(
    plan: EvaluationPlan, datasets: Sequence[EvaluationDataset], tasks: Sequence[str], description: str
) -> str:
    """Write the recipe as YAML.

    Args:
        plan: The models, and how to evaluate them.
        datasets: The datasets.
        tasks: The tasks. Empty: the tasks of the suite, or else all that fit each dataset.
        description: Description of the recipe.

    Raises:
        UserError: If a task is unknown or fits no dataset or model, or a name is used twice.
    """
    _check_tasks(tasks, plan.known)
    data = [dataset.data for dataset in datasets]
    _check_names([*plan.models, *data])
    dense = []
    inputs = []
    for model in plan.models:
        if model.stage and model.stage["kind"] == IMPORT_DENSE:
            dense.append(model)
        else:
            inputs.append(model)
    chosen = []
    used: set[str] = set()
    for dataset in datasets:
        of_dataset = tasks or tuple(dataset.scores) or _default_tasks(plan, dataset)
        chosen.append((dataset, of_dataset))
        used.update(of_dataset)
        inputs.append(dataset.data)
        # Indexing the training images of COCO takes minutes, and most tasks do not read them.
        if dataset.train and any("train" in plan.known[f"eval.{task}"].model_fields for task in of_dataset):
            inputs.append(dataset.train)
    for model in dense:  # after the data, whose classes they get
        assert model.stage is not None
        model.stage.update(import_settings(model, data, used))
    inputs += dense
    for part in inputs:
        if part.stage and part.stage not in plan.stages:
            plan.stages.append(part.stage)
    for dataset, of_dataset in chosen:
        for task in of_dataset:
            plan.stages += _evaluations(plan, dataset, task)
    if not plan.scores:
        raise UserError(_reasons(plan) or _no_task(plan, data))
    summary: Fields = {"kind": "eval.summary", "name": SUMMARY, "scores": plan.scores}
    if plan.left_out:
        summary["missing"] = list(map(_non_empty, map(asdict, plan.left_out)))
    plan.stages.append(summary)
    record = {"description": description, "stages": plan.stages}
    return dump(record)


def _evaluations(plan: EvaluationPlan, dataset: EvaluationDataset, task: str) -> Iterator[Fields]:
    """Yield the stages of a task on a dataset, one for each language and resize mode. Record misfits in the plan."""
    kind = plan.known[f"eval.{task}"]
    captions = "language" in kind.model_fields and _input_ref(kind, "data").accepts(PairDataset)
    languages: Sequence[str | None] = (None,)
    if captions:
        languages = plan.languages or dataset.languages or (None,)
    variants = list(product(languages, plan.resize_modes))
    # A `way` separates results on the same dataset, so that no mean counts the same images twice.
    extra_task = "" if task in dataset.scores or not dataset.scores else task
    ways = []
    for language, mode in variants:
        language_name = language if len(languages) > 1 else None
        ways.append(", ".join(filter(None, (extra_task, language_name, mode))))
    why = _misfit(dataset, kind)
    if why:
        plan.left_out.append(SkippedDataset(_title(dataset, task), dataset.group, why, tuple(ways)))
        return
    fitting = []
    for model in plan.models:
        why = _model_misfit(model, kind)
        if why:
            plan.left_out.append(SkippedDataset(_title(dataset, task), "", why))
        else:
            fitting.append(model.ref)
    if not fitting:
        return
    fields: Fields = {"models": fitting, "data": dataset.data.ref, **dataset.settings}
    if "train" in kind.model_fields and dataset.train:
        fields["train"] = dataset.train.ref
    for (language, mode), way in zip(variants, ways, strict=True):
        more = {"language": language, "resize_mode": mode}
        name = "-".join(filter(None, (stage_name(dataset.data.name), task, language, mode)))
        yield {"kind": f"eval.{task}", "name": name, **fields, **_non_empty(more)}
        title = " ".join(filter(None, (dataset.title or dataset.data.name, language, mode)))
        metrics = dataset.scores.get(task, [])
        shown = _non_empty({"title": title, "group": dataset.group, "way": way, "metrics": metrics})
        plan.scores.append({"report": name, **shown})


def _non_empty(fields: Fields) -> Fields:
    """Select the fields that are not empty, with tuples as lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items() if value}


def _misfit(dataset: EvaluationDataset, kind: type[Stage]) -> str:
    """Explain why a task does not fit a dataset.

    The text is empty if it fits.
    """
    task = kind.kind_name().removeprefix("eval.")
    data = _input_ref(kind, "data")
    if not data.accepts(dataset.data.makes):
        needed = next((words for kind, words in CONTENTS.items() if data.accepts(kind)), data.expected)
        return f"{dataset.data.name} is a {dataset.data.makes.__name__}: {task} needs {needed}"
    train = kind.model_fields.get("train")
    if train and train.is_required() and dataset.train is None:
        return f"{task} needs training images: a folder `train` next to the data, or --train"
    return ""


def _model_misfit(model: Input, kind: type[Stage]) -> str:
    """Explain why a task does not apply to a model. Empty if it does."""
    task = kind.kind_name().removeprefix("eval.")
    models = _input_ref(kind, "models")
    if models.accepts(model.makes):
        needed: tuple[str, ...] = getattr(kind, "tasks", ())
        if not model.predicts or set(model.predicts) & set(needed):
            return ""
        return f"{model.name} predicts {', '.join(model.predicts)}, {task} needs {' or '.join(needed)}"
    heads: tuple[type[Artifact], ...] = (VideoClassifier, DenseCheckpoint)
    if model.makes in heads or any(map(models.accepts, heads)):
        reason = f"{task} needs a {models.expected}"
    elif model.makes is ClipCheckpoint:
        reason = "with a text tower"
    else:
        reason = "without a text tower"
    return f"{model.name} is a {model.makes.__name__}, {reason}: {task} does not apply"


def _default_tasks(plan: EvaluationPlan, dataset: EvaluationDataset) -> tuple[str, ...]:
    """List the tasks without training images that fit a dataset, for detectors and segmenters by their labels."""
    fitting = [task for task in DEFAULT_TASKS if _fits(plan, dataset, task)]
    return (*fitting, *dense_tasks(plan.models, dataset.data, plan.known))


def _fits(plan: EvaluationPlan, dataset: EvaluationDataset, task: str) -> bool:
    return f"eval.{task}" in plan.known and not _misfit(dataset, plan.known[f"eval.{task}"])


def _reasons(plan: EvaluationPlan) -> str:
    """Explain why each dataset and task is left out, one line each."""
    suite = f"{plan.suite}: " if plan.suite else ""
    return "\n".join(f"{suite}{gap.title}: {gap.why}" for gap in plan.left_out)


def _no_task(plan: EvaluationPlan, datasets: Iterable[Input]) -> str:
    dense = [model for model in plan.models if model.predicts]
    annotated = []
    names = []
    for data in datasets:
        names.append(f"{data.name} ({data.makes.__name__})")
        if issubclass(data.makes, AnnotatedImages):
            annotated.append(data)
    if dense and annotated:
        return no_common_task(dense, annotated, plan.known)
    return f"no task fits {', '.join(names) or 'no data'}; give tasks to choose others"


def _input_ref(kind: type[Stage], name: str) -> Ref[Artifact]:
    """Build a ref with the types that an input of a stage accepts."""
    annotation: Any = kind.model_fields[name].annotation
    is_list = getattr(annotation, "__origin__", None) is list
    inner: Any = get_args(annotation)[0] if is_list else annotation
    ref: Ref[Artifact] = TypeAdapter(inner).validate_python("input")
    return ref


def _title(dataset: EvaluationDataset, task: str) -> str:
    return f"{dataset.title or dataset.data.name}, {task}"


def _check_tasks(tasks: Iterable[str], known: Mapping[str, type[Stage]]) -> None:
    kinds = set()
    for stage in known.values():
        if issubclass(stage, Evaluation) and "data" in stage.model_fields:
            kinds.add(stage.kind_name().removeprefix("eval."))
    for task in tasks:
        if task not in kinds:
            raise UserError(f"tasks: no task {task!r}{did_you_mean(task, kinds)}")


def _check_names(inputs: Iterable[Input]) -> None:
    names = [part.name for part in inputs]
    twice = repeated(names)
    if twice:
        raise UserError(f"two of the models and datasets are named {twice[0]!r}; {ANOTHER_NAME}")
    if SUMMARY in names:
        raise UserError(f"{SUMMARY!r} is the name of the table of all results; {ANOTHER_NAME}")
