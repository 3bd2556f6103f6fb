"""The interfaces: abstract stages that fix inputs and output, so that another method drops in where ours stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from vfm.artifacts import (
    Artifact,
    ClipCheckpoint,
    CuratedSubset,
    ImageDataset,
    Matches,
    PairDataset,
    Report,
    VisionCheckpoint,
)
from vfm.config import Config, did_you_mean, readable
from vfm.stage import Context, Ref, Runtime, Seed, Stage

Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def _from_small_to_large(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} should go from small to large")
    return pair


CropScale = Annotated[tuple[Share, Share], AfterValidator(_from_small_to_large)]
"""Smallest and largest share of an image's area that a random crop keeps."""


class Curation(Stage):
    """Chooses pairs of a pool, from what its texts matched."""

    makes: ClassVar[type[Artifact]] = CuratedSubset

    matches: Ref[Matches] = Field(description="the pool's texts with the entries in each")
    seed: Seed = Field(0, description="of the draws that keep or drop a text")


class Evaluation(Stage):
    """Judges models on one data set, all on the same items; each is compared with the first by a paired test."""

    makes: ClassVar[type[Artifact]] = Report

    models: list[Ref[ClipCheckpoint]] = Field([], description="whom to judge; left out in a training's `evals`")

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        """What `encoder`, a model in training (`Task.encoder`), gets by each metric; for a training's `evals`."""
        raise NotImplementedError(f"{self.kind} judges no model in training")

    @property
    def log_prefix(self) -> str:
        """What its metrics' names begin with in a training's log: nothing, unless it was given a name."""
        return "" if self.name == _verb(self.kind) else f"{self.name}/"


def _verb(kind: str) -> str:
    return kind.rpartition(".")[2]


def _of_its_kind(value: Any, info: ValidationInfo) -> Any:
    """The evaluation that a mapping describes; the installed kinds are in the validation's context."""
    if not isinstance(value, Mapping):
        return value
    kinds = {kind: stage for kind, stage in (info.context or {}).items() if issubclass(stage, Evaluation)}
    kind = str(value.get("kind"))
    if kind not in kinds:
        raise ValueError(f"{kind!r} is no kind of evaluation{did_you_mean(kind, kinds)}")
    try:
        return kinds[kind].model_validate({"name": _verb(kind), **value}, context=info.context)
    except ValidationError as error:
        raise readable(error, kinds[kind]) from None


AnyEvaluation = Annotated[
    SerializeAsAny[Evaluation],
    BeforeValidator(_of_its_kind),
    WithJsonSchema({"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}),
]


def check_evals(evals: Sequence[Evaluation], maker: Stage) -> None:
    """Refuses evaluations that cannot judge what a stage makes on its way to it.

    Raises:
        ValueError: the first such one.
    """
    names = [evaluation.name for evaluation in evals]
    for number, evaluation in enumerate(evals):
        (wanted,) = get_args(type(evaluation).model_fields["models"].annotation)
        model = TypeAdapter(wanted).validate_python(maker.kind)
        if evaluation.models or evaluation.runtime != Runtime():
            complaint = "leave models and runtime out: the model in training is judged, where it is trained"
        elif type(evaluation).scores is Evaluation.scores:
            complaint = f"{evaluation.kind} judges no model in training"
        elif not model.accepts(maker.makes):
            complaint = f"{evaluation.kind} judges a {model.wanted}; {maker.kind} makes a {maker.makes.__name__}"
        elif evaluation.name in names[:number]:
            complaint = f"another one is called {evaluation.name!r} already: give it a name of its own"
        else:
            continue
        raise ValueError(f"evals[{number}]: {complaint}")


class CheckpointPolicy(Config):
    """When a training saves what it needs to go on after a crash. Resuming is exact wherever the cut falls."""

    every_steps: int | None = Field(None, ge=1, description="steps between checkpoints")
    every_minutes: float = Field(5.0, gt=0, description="a checkpoint at the latest after so long")


class Training(Stage):
    """What all trainings share. An optimiser step takes `global_batch_size` samples, perhaps in micro-batches."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; give this or samples_seen")
    samples_seen: int | None = Field(None, ge=1, description="samples to train on in all; give this or steps")
    global_batch_size: int = Field(128, ge=1, description="samples an optimiser step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="samples a forward pass of one process; default: no accumulation"
    )
    optimizer: Literal["adamw", "sgd", "lamb"] = Field(
        "adamw", description="how gradients become steps; lamb for batches of tens of thousands"
    )
    lr: float = Field(1e-3, ge=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="decoupled; biases, norms and other vectors are spared")
    betas: tuple[Decay, Decay] = Field((0.9, 0.98), description="decay of the two averages of adamw and lamb")
    eps: float = Field(1e-6, gt=0, description="added to their denominator")
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises linearly to lr")
    min_lr: float = Field(0.0, ge=0, description="where the cosine schedule ends")
    grad_clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; default: no clipping")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="average the weights; the average is what is exported"
    )
    precision: Literal["fp32", "amp_bf16"] = Field("fp32", description="of the forward pass; weights stay in fp32")
    grad_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    shuffle_shards: int = Field(1000, ge=1, description="shards whose samples are shuffled together")
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="stop when more samples than this share cannot be read"
    )
    log_every: int = Field(10, ge=1, description="steps between reads of the metrics")
    checkpoint: CheckpointPolicy = Field(CheckpointPolicy(), description="when to save what a resume needs")
    evals: list[AnyEvaluation] = Field([], description="evaluations, without `models`, of the model in training")
    eval_every: int | None = Field(None, ge=1, description="steps between evaluations; default: after the last alone")
    keep_best: str | None = Field(
        None,
        description="a score of the `evals`, such as val/image_retrieval_recall@1, which then judge the start too: the"
        " weights that had the highest are exported, which is told; default: the last weights",
    )
    seed: Seed = Field(0, description="of all random draws")

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.samples_seen is None):
            raise ValueError("give exactly one of steps and samples_seen")
        return self

    @model_validator(mode="after")
    def _falling_rate(self) -> Training:
        if self.schedule == "cosine" and self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr, {self.lr:g}")
        return self

    @model_validator(mode="after")
    def _evals_fit(self) -> Training:
        check_evals(self.evals, self)
        if self.eval_every and not self.evals:
            raise ValueError("eval_every says when, evals what to judge: give both")
        if self.keep_best and not self.eval_every:
            raise ValueError("keep_best chooses among weights: evals and eval_every say which are judged")
        begin = tuple(f"val/{evaluation.log_prefix}" for evaluation in self.evals)
        if self.keep_best and not self.keep_best.startswith(begin):
            raise ValueError(
                f"keep_best: {self.keep_best} is no score of the evals; theirs begin with {', '.join(begin)}"
            )
        return self

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps or max(1, (self.samples_seen or 0) // self.global_batch_size)


class VisionPretraining(Training):
    """Trains a vision encoder from images."""

    makes: ClassVar[type[Artifact]] = VisionCheckpoint

    data: Ref[ImageDataset] = Field(description="the images to learn from")


class Portion(Config):
    """One of several data sets that a training mixes."""

    data: Ref[PairDataset] = Field(description="the pairs to learn from")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="its share of the samples, against the weights of the others"
    )


class ClipTraining(Training):
    """Trains a CLIP model from pairs."""

    makes: ClassVar[type[Artifact]] = ClipCheckpoint

    data: Ref[PairDataset] | Annotated[list[Portion], Field(min_length=1)] = Field(
        description="the pairs to learn from; or several data sets with their weights, mixed in every batch"
    )

    @property
    def portions(self) -> list[Portion]:
        """The data sets: one, or those of a mixture."""
        return self.data if isinstance(self.data, list) else [Portion(data=self.data)]

    @model_validator(mode="after")
    def _each_once(self) -> ClipTraining:
        names = [portion.data for portion in self.portions]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"data: '{twice[0]}' is named twice; its weight says how much of it there should be")
        return self


class ClipPostTraining(Training):
    """Improves a trained CLIP model, from images alone."""

    makes: ClassVar[type[Artifact]] = ClipCheckpoint

    clip: Ref[ClipCheckpoint] = Field(description="the model to improve")
    data: Ref[ImageDataset] = Field(description="the images to learn from")
