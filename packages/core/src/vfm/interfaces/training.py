"""Common settings of all training stages, in groups."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vfm.base import INCIDENTAL, Config, Incidental, Part, UserError
from vfm.interfaces.artifact import Artifact
from vfm.interfaces.evaluation import AnyEvaluation, check_evaluations
from vfm.interfaces.loading import Loading
from vfm.interfaces.schedules import CosineSchedule, Schedule, WarmupStableDecay
from vfm.interfaces.stage import Context, Ref, Seed, Stage, refs
from vfm.interfaces.training_runtime import TrainingRuntime

Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Part):
    """Base class of the optimizers. `build(groups, lr)` returns a `torch.optim.Optimizer`."""

    weight_decay: float = Field(0.05, ge=0, description="decoupled; not applied to biases, norms and other vectors")
    grad_clip_norm: float | None = Field(None, gt=0, description="maximum gradient norm; null: no clipping")

    @property
    def algorithm_name(self) -> str:
        """Name of the algorithm. A training run can only continue from a state of the same algorithm."""
        return self.type

    @property
    def can_shard(self) -> bool:
        """Whether its step is the same if each process stores a part of every weight (`runtime.parallel: fsdp`)."""
        return True


class AdamW(Optimizer):
    """AdamW, torch's fused implementation."""

    type: Literal["adamw"] = Field("adamw", description="AdamW")
    work: ClassVar[str] = "vfm.train.optim.optim:build_adamw"
    betas: tuple[Decay, Decay] = Field((0.9, 0.98), description="decay rates of the two moment estimates")
    eps: float = Field(1e-6, gt=0, description="added to the denominator")


class LambConfig(Optimizer):
    """LAMB, for batches of tens of thousands of samples (arXiv:1904.00962)."""

    type: Literal["lamb"] = Field("lamb", description="LAMB, for batches of tens of thousands of samples")
    work: ClassVar[str] = "vfm.train.optim.optim:build_lamb"
    betas: tuple[Decay, Decay] = Field((0.9, 0.98), description="decay rates of the two moment estimates")
    eps: float = Field(1e-6, gt=0, description="added to the denominator")


class Sgd(Optimizer):
    """SGD with momentum."""

    type: Literal["sgd"] = Field("sgd", description="SGD with momentum")
    work: ClassVar[str] = "vfm.train.optim.optim:build_sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")


class CheckpointPolicy(Config):
    """When a training run saves its state. Resuming is exact wherever the run was interrupted."""

    every_steps: int | None = Field(None, ge=1, description="steps between checkpoints")
    every_minutes: float = Field(5.0, gt=0, description="maximum minutes between checkpoints")
    keep_last: int = Field(2, ge=1, description="number of checkpoints to keep while training; more allow a rewind")
    keep_every: int | None = Field(
        None, ge=1, description="keep the checkpoints of all multiples of this, also in the artifact"
    )
    keep_state: bool = Field(
        False, description="keep the last checkpoint in the artifact, so that another training run can continue from it"
    )


class ContinueFrom(Config):
    """The weights, averages and optimizer state that training starts from."""

    training: Ref[Artifact] = Field(
        description="an earlier training stage, its artifact (see checkpoint.keep_state), or a checkpoint folder"
    )
    step: int | None = Field(None, ge=1, description="step of the checkpoint to use; default: the last one kept")


class EvaluationPolicy(Config):
    """Evaluations of the model during training."""

    tasks: list[AnyEvaluation] = Field([], description="evaluations, without `models`, of the model in training")
    every_steps: Annotated[int | None, Incidental(unless="keep_best")] = Field(
        None, ge=1, description="steps between evaluations; default: only after the last step"
    )
    keep_best: str | None = Field(
        None,
        description="metric of the tasks, such as val/image_retrieval_recall@1. The weights with its highest value are"
        " exported, and the initial weights are evaluated too; default: the last weights",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.every_steps and not self.tasks:
            raise ValueError("every_steps needs tasks: list the evaluations to run")
        if self.keep_best and not self.every_steps:
            raise ValueError("keep_best needs tasks and every_steps: it chooses among the evaluated weights")
        prefixes = tuple(f"val/{task.log_prefix}" for task in self.tasks)
        if self.keep_best and not self.keep_best.startswith(prefixes):
            raise ValueError(
                f"keep_best: expected a metric that begins with {', '.join(prefixes)}, got {self.keep_best}"
            )
        return self


class Training(Stage):
    """Base class of training stages. An optimizer step takes `global_batch_size` samples, maybe in micro-batches."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; give either steps, samples_seen or epochs")
    samples_seen: int | None = Field(None, ge=1, description="total number of samples, in place of steps")
    # It is in the identity of a stage only if it is set, so that earlier artifacts keep theirs.
    epochs: Annotated[float | None, Incidental(unless="epochs")] = Field(
        None,
        gt=0,
        description="passes over the data, in place of steps: as many samples as the data have, for each",
    )
    global_batch_size: int = Field(128, ge=1, description="samples per optimizer step, over all processes")
    micro_batch_size: Annotated[int | None, INCIDENTAL] = Field(
        None, ge=1, description="samples per forward pass of a process; default: no accumulation"
    )
    lr: float = Field(1e-3, ge=0, description="peak learning rate")
    precision: Literal["auto", "fp32", "amp_bf16", "amp_fp16", "amp_fp8", "bf16"] = Field(
        "auto",
        description="forward-pass precision. Master weights stay in fp32; with bf16, the working copy is bf16;"
        " amp_fp8: amp_bf16 with products of the blocks' linear layers in FP8, forward and backward (needs torchao);"
        " auto: amp_bf16 on CUDA devices that support it, else fp32",
    )
    optimizer: Optimizer = Field(AdamW(), description="optimizer and its settings")
    schedule: Schedule = Field(CosineSchedule(), description="learning rate over the steps")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights, which is exported; null: no average"
    )
    continue_from: ContinueFrom | None = Field(
        None,
        description="start from the state of another training run, whose steps count as the first steps of this one."
        " Other settings, such as lr, schedule, steps or data, may differ",
    )
    skip_steps: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="steps to skip, counted from 1 as in messages, such as a step that was not finite"
    )
    grad_checkpointing: Annotated[bool, INCIDENTAL] = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    loading: Loading = Field(Loading(), description="how samples are read")
    log_every: Annotated[int, INCIDENTAL] = Field(10, ge=1, description="steps between log lines")
    checkpoint: Annotated[CheckpointPolicy, INCIDENTAL] = Field(
        CheckpointPolicy(), description="when the training state is saved"
    )
    evaluation: EvaluationPolicy = Field(EvaluationPolicy(), description="evaluations during training")
    runtime: TrainingRuntime = Field(TrainingRuntime(), description="device, processes, workers, threads, kernels")
    seed: Seed = Field(0, description="seed of all random draws")

    in_processes: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    can_shard: ClassVar[bool] = False  # whether `runtime.parallel: fsdp` is known to give the same result as ddp
    moved: ClassVar[Mapping[str, str]] = {"evals": "evaluation.tasks", "eval_every": "evaluation.every_steps"}

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if [self.steps, self.samples_seen, self.epochs].count(None) != 2:
            raise ValueError("give exactly one of steps, samples_seen and epochs")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_steps(self) -> Self:
        if self.epochs is None:  # otherwise they are checked when the data are known
            self.check_steps()
        return self

    @model_validator(mode="after")
    def _batch_is_divisible(self) -> Self:
        if self.global_batch_size % self.runtime.processes:
            raise ValueError(
                f"global_batch_size: expected a multiple of runtime.processes, {self.runtime.processes}, got"
                f" {self.global_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        if self.runtime.parallel == "fsdp" and not self.can_shard:
            raise ValueError(f"runtime.parallel: expected ddp, got fsdp, which {self.kind} does not support")
        if self.runtime.parallel == "fsdp" and not self.optimizer.can_shard:
            raise ValueError(
                f"optimizer: {self.optimizer.algorithm_name} needs whole weights: set runtime.parallel: ddp"
            )
        if self.runtime.parallel == "fsdp" and self.precision == "bf16":
            raise ValueError("runtime.parallel: fsdp stores weights in fp32: expected another precision, got bf16")
        if self.runtime.parallel == "fsdp" and self.precision == "amp_fp16":
            raise ValueError("precision: amp_fp16 needs runtime.parallel: ddp; use amp_bf16 with fsdp")
        if self.evaluation.keep_best and not self.runtime.gather_for_evaluation:
            raise ValueError("evaluation.keep_best needs whole weights: set runtime.gather_for_evaluation: true")
        if self.grad_checkpointing and self.runtime.selective_checkpointing:
            raise ValueError("give either grad_checkpointing or runtime.selective_checkpointing")
        return self

    def check_steps(self) -> None:
        """Check the settings that depend on the number of steps. A subclass extends it.

        Raises:
            ValueError: If a setting does not fit the number of steps.
        """
        profiled = self.runtime.profile
        if profiled and profiled[1] > self.num_steps:
            raise ValueError(f"runtime.profile: expected two of the steps 1 to {self.num_steps}, got {list(profiled)}")
        above = [step for step in self.skip_steps if step > self.num_steps]
        if above:
            raise ValueError(f"skip_steps: expected some of the steps 1 to {self.num_steps}, got {above}")

    @model_validator(mode="after")
    def _falling_rate(self) -> Self:
        if isinstance(self.schedule, (CosineSchedule, WarmupStableDecay)) and self.schedule.min_lr > self.lr:
            raise ValueError(f"schedule.min_lr must be at most lr, {self.lr:g}; got {self.schedule.min_lr:g}")
        return self

    @model_validator(mode="after")
    def _evaluations_fit(self) -> Self:
        check_evaluations(self.evaluation.tasks, self)
        return self

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps.

        Raises:
            ValueError: If it depends on the size of the data (see `with_steps`).
        """
        if self.epochs is not None:
            raise ValueError(f"{self.name}: {self.epochs:g} epochs have no number of steps before the data are known")
        return self.steps or max(1, (self.samples_seen or 0) // self.global_batch_size)

    @property
    def datasets(self) -> list[Ref[Any]]:
        """The training data, one input or the parts of a mixture."""
        return [ref for key, ref in refs(self) if key == "data" or key.startswith("data[")]

    def with_steps(self, artifact: Callable[[Ref[Any]], Any]) -> Self:
        """Replace `epochs` by the number of steps.

        If the data are not known, the stage is returned unchanged.

        Args:
            artifact: Loads an input. Inputs that do not exist yet give None.

        Raises:
            UserError: If a setting does not fit the number of steps.
        """
        if self.epochs is None:
            return self
        datasets = list(map(artifact, self.datasets))
        if None in datasets:
            return self
        counts = [data.num_samples for data in datasets]
        if not all(counts):
            raise UserError(f"{self.name}: epochs: the samples of its data are not counted; set steps or samples_seen")
        samples = self.epochs * sum(counts)
        known = self.model_copy(update={"steps": max(1, round(samples) // self.global_batch_size), "epochs": None})
        try:
            known.check_steps()
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None
        return known

    def at_start(self, ctx: Context) -> Self:
        """Replace `epochs` by the number of steps."""
        return self.with_steps(lambda ref: Artifact.load(ctx.inputs[ref], verify=False))
