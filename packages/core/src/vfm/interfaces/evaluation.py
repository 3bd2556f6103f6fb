"""The interface of evaluations, and evaluations as a field of a training stage."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from vfm.base import UserError, did_you_mean, readable, repeated
from vfm.interfaces.artifact import Artifact
from vfm.interfaces.checkpoints import ClipCheckpoint
from vfm.interfaces.report import Report
from vfm.interfaces.stage import Context, Preflight, Ref, Runtime, Stage


class Evaluation(Stage):
    """Evaluate models on one dataset, all on the same items. A paired test compares each with the first."""

    makes: ClassVar[type[Artifact]] = Report
    on_device: ClassVar[bool] = True

    models: list[Ref[ClipCheckpoint]] = Field([], description="models to evaluate; omitted in `evaluation.tasks`")

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        """Compute each metric for `encoder`, a model in training (`Task.encoder`)."""
        raise NotImplementedError(f"{self.kind} does not evaluate models in training")

    @property
    def has_something_to_evaluate(self) -> bool:
        """Whether the evaluation can run as a stage. Without models, it is an entry of `evaluation.tasks`."""
        return bool(self.models)

    @property
    def result_names(self) -> list[str]:
        """Names in the results.

        They are the models, and anything else that is evaluated in place of a model.
        """
        return list(map(short_name, self.models))

    def preflight(self, ctx: Preflight) -> None:
        """Check the names of the results, then run `checks`.

        A name that is used twice would drop a model from the results.

        Raises:
            UserError: If a name is used twice, or `checks` finds a mistake.
        """
        twice = repeated(self.result_names)
        if twice:
            raise UserError(f"models: {twice[0]!r} is named more than once")
        super().preflight(ctx)

    @property
    def log_prefix(self) -> str:
        """Prefix of its metrics in the log of a training run. Empty unless the evaluation was given a name."""
        if self.name == _verb(self.kind):
            return ""
        return f"{self.name}/"


def short_name(ref: str) -> str:
    """Shorten an input for results to the name of a stage or the last part of a path."""
    return ref.rstrip("/").rsplit("/", 1)[-1]


def _verb(kind: str) -> str:
    return kind.rsplit(".", 1)[-1]


def _of_its_kind(value: Any, info: ValidationInfo) -> Any:
    """Build the evaluation that a mapping describes. The validation context has the installed kinds."""
    if not isinstance(value, Mapping):
        return value
    known: Mapping[str, type[Stage]] = info.context or {}
    kind = str(value.get("kind"))
    if kind not in known or not issubclass(known[kind], Evaluation):
        kinds = [name for name, stage in known.items() if issubclass(stage, Evaluation)]
        raise ValueError(f"expected a kind of evaluation, got {kind!r}{did_you_mean(kind, kinds)}")
    try:
        return known[kind].model_validate({"name": _verb(kind), **value}, context=info.context)
    except ValidationError as error:
        raise readable(error, known[kind]) from None


AnyEvaluation = Annotated[
    SerializeAsAny[Evaluation],
    BeforeValidator(_of_its_kind),
    WithJsonSchema({"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}),
]
"""An evaluation of any installed kind, as a field: a mapping with a `kind`."""


def check_evaluations(evaluations: Sequence[Evaluation], stage: Stage) -> None:
    """Check that evaluations can evaluate the model that a stage trains, during training.

    Raises:
        ValueError: If an evaluation cannot. The message describes the first mistake.
    """
    names: set[str] = set()
    for number, evaluation in enumerate(evaluations):
        (expected,) = get_args(type(evaluation).model_fields["models"].annotation)
        model = TypeAdapter(expected).validate_python(stage.kind)
        if evaluation.has_something_to_evaluate or evaluation.runtime != Runtime():
            message = "leave models, predictions and runtime out: it evaluates the model in training, on its device"
        elif type(evaluation).scores is Evaluation.scores:
            message = f"{evaluation.kind} does not evaluate models in training"
        elif not model.accepts(stage.makes):
            message = f"{evaluation.kind} expects a {model.expected}, {stage.kind} makes a {stage.makes.__name__}"
        elif evaluation.name in names:
            message = f"the name {evaluation.name!r} is already used: give it another one"
        else:
            names.add(evaluation.name)
            continue
        raise ValueError(f"evaluation.tasks[{number}]: {message}")
