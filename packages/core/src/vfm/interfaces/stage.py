"""Stages are frozen configurations with typed inputs (`Ref`), a typed result (`makes`) and an address of code."""

import os
import signal
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import core_schema

from vfm.base import INCIDENTAL, Config, UserError, load_function
from vfm.interfaces.artifact import Artifact
from vfm.interfaces.events import Event
from vfm.interfaces.panels import Panel

A = TypeVar("A", bound=Artifact)


class Ref(str, Generic[A]):
    """An input of a stage.

    It is the name of an earlier stage or the path of a saved artifact. `Ref[Pool]` accepts a Pool or a subtype.
    """

    target: Any  # the expected type, or a union of types

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        (target,) = get_args(source)

        def build(value: str) -> Ref[A]:
            ref: Ref[A] = cls(value)
            ref.target = target
            return ref

        return core_schema.no_info_after_validator_function(build, core_schema.str_schema(min_length=1))

    def accepts(self, artifact_type: type[Artifact]) -> bool:
        """Check whether an artifact of this type is a valid input."""
        return issubclass(artifact_type, self._types())

    @property
    def expected(self) -> str:
        """Names of the expected types, for messages."""
        return " or ".join(kind.__name__ for kind in self._types())

    def _types(self) -> tuple[type[Artifact], ...]:
        if isinstance(self.target, UnionType):
            return get_args(self.target)
        return (self.target,)


MOST_WORKERS = 16  # limit of `workers: auto`, since each takes some hundred MB
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Runtime(Config):
    """How a stage runs. This does not change the result, except for the order of floating-point operations.

    Order, crops, masks and captions of samples do not depend on it. With several `processes`, random draws within a
    model (dropout, drop path) do, as well as statistics over the part of the batch in a process (batch norm).
    """

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: CUDA if available, else CPU"
    )
    processes: int = Field(
        1,
        ge=1,
        description="processes on this machine that train or evaluate, started by torchrun; other stages run in one",
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        0,
        description="processes that read and decode samples, for each of `processes`; 0: one thread; auto: chosen by"
        " the number of cores",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads for computation; default: one per core. 1 suits small models on a busy machine",
    )

    @model_validator(mode="after")
    def _one_device_each(self) -> Self:
        if self.processes > 1 and ":" in self.device:
            raise ValueError(f"{self.processes} processes cannot share {self.device}; use cuda, one device per process")
        return self

    @property
    def num_workers(self) -> int:
        """Number of workers.

        `auto` takes the cores of a training process, minus one for itself, from 1 to 16.
        """
        if self.workers != "auto":
            return self.workers
        return min(MOST_WORKERS, max(1, self.share() - 1))

    def share(self, jobs: int = 1) -> int:
        """Compute the number of cores of each process of a step while `jobs` steps run, at least 1."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // (jobs * self.processes))

    def among(self, jobs: int) -> Self:
        """Fill in the unset numbers of a runtime for one of `jobs` concurrent steps, from its share of the cores.

        The number of threads is `threads`, else OMP_NUM_THREADS, else the cores of each process.
        """
        share = self.share(jobs)
        outside = os.environ.get("OMP_NUM_THREADS", "").split(",", 1)[0]
        from_environment = int(outside) if outside.isdecimal() else 0
        threads = self.threads or from_environment or share
        workers = self.workers
        if workers == "auto":
            workers = min(MOST_WORKERS, max(1, share - 1))
        return self.model_copy(update={"threads": threads, "workers": workers})


PREDICTORS: set[str] = set()  # functions that stages declare; an artifact may name no other function


class Stage(Config):
    """A step of a recipe. Plugins subclass it, or preferably an interface (`Training`, `Evaluation`, ...).

    The class only holds the configuration. `work` and `checks` name functions as `"package.module:function"`. Their
    modules are imported when the stage runs, so configurations stay light, and the modules with the work can import
    everything at the top. A small plugin may override `run` and `preflight` instead.

    Rules that are checked when the class is defined: `kind` is a `Literal["domain.verb"]`. `makes` is the type of the
    artifact, taken from the annotation of `run` if a subclass overrides it. Authors raise `version` when the result for
    the same configuration changes.
    """

    kind: str
    name: Annotated[str, INCIDENTAL] = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*(@\d+)?$", description="name by which later stages refer to this one"
    )
    runtime: Annotated[Runtime, INCIDENTAL] = Field(Runtime(), description="device, processes, workers, threads")

    version: ClassVar[int] = 1
    makes: ClassVar[type[Artifact]] = Artifact
    work: ClassVar[str] = ""  # (config, Context) -> artifact
    checks: ClassVar[str] = ""  # (config, Preflight) -> None
    costs: ClassVar[str] = ""  # (config, Preflight) -> vfm.interfaces.costs.Cost, for `vfm plan --estimate`
    predictor: ClassVar[str] = ""  # (checkpoint, device) -> predictor, for the dense or video model that it makes
    in_processes: ClassVar[bool] = False  # whether all of `runtime.processes` run it, instead of one
    on_device: ClassVar[bool] = False  # whether it computes on `runtime.device`; with `--jobs`, it gets a whole GPU

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if cls.predictor:
            PREDICTORS.add(cls.predictor)
        if "run" in cls.__dict__:
            returned = typing.get_type_hints(cls.run).get("return")
            if not (isinstance(returned, type) and issubclass(returned, cls.makes)):
                raise TypeError(
                    f"expected {cls.__name__}.run to be annotated with a {cls.makes.__name__}, got {returned}"
                )
            cls.makes = returned
        elif get_args(cls.model_fields["kind"].annotation) and not cls.work and cls.run is Stage.run:
            raise TypeError(f"{cls.__name__} has a kind but no work: set `work`, or override `run`")

    @classmethod
    def kind_name(cls) -> str:
        """Look up the value of `kind`, e.g. "eva.pretrain"."""
        (name,) = get_args(cls.model_fields["kind"].annotation)
        return str(name)

    def run(self, ctx: "Context") -> Artifact:
        """Make the artifact in `ctx.directory` by calling the function `work`."""
        artifact: Artifact = load_function(self.work)(self.at_start(ctx), ctx)
        return artifact

    def at_start(self, ctx: "Context") -> Self:
        """Determine the settings that depend on the inputs, when the stage starts."""
        return self

    def sources(self) -> Iterable[str]:
        """List the outside files that the result depends on. Their fingerprints are part of the artifact's id."""
        return ()

    def preflight(self, ctx: "Preflight") -> None:
        """Check before anything runs that names exist, widths fit, one sample decodes, and so on.

        Raises:
            UserError: If something is wrong. The message is one line with the mistake and how to fix it.
        """
        if self.checks:
            load_function(self.checks)(self, ctx)


def refs(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Ref[Any]]]:
    """Yield every input of a stage as (dotted key, ref), including those in nested parts and lists."""
    for key in type(config).model_fields:
        yield from _refs_in(getattr(config, key), f"{prefix}{key}")


def _refs_in(value: object, key: str) -> Iterator[tuple[str, Ref[Any]]]:
    if isinstance(value, Ref):
        yield key, value
    elif isinstance(value, BaseModel):
        yield from refs(value, f"{key}.")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _refs_in(item, f"{key}[{index}]")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _refs_in(item, f"{key}.{name}")


class Preempted(SystemExit):
    """Raised when a training run stops on a signal, after it has saved a checkpoint.

    The next run resumes from it. If not caught, it ends the process with the exit code that the signal would have
    caused, 143 for SIGTERM and 138 for SIGUSR1. Schedulers send these some time before a job's limit (Slurm:
    `--signal=USR1@120`).
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.message = message
        self.number = number

    def __str__(self) -> str:
        return self.message


class LeftToFirst(Exception):  # noqa: N818 (no error)
    """Raised in all processes of a stage except the first. The first one does the remaining work."""


@dataclass
class Preflight:
    """Facts known before a run, such as earlier stages, artifacts that exist, and identities of the stage's inputs."""

    stages: Mapping[str, Stage]
    artifacts: Mapping[str, Path]
    identities: Mapping[str, str] = field(default_factory=dict)  # as recorded later in the manifest

    def artifact(self, ref: Ref[A]) -> A | None:
        """Load the artifact of an input if it already exists, else return None."""
        path = self.artifacts.get(ref)
        return typing.cast("A", Artifact.load(path)) if path else None

    def stage(self, ref: str) -> Stage | None:
        """Look up the stage that makes an input if it is in this recipe, else return None."""
        return self.stages.get(ref)


@dataclass
class Context:
    """The environment of a running stage, with its folders, its inputs, and methods that report to the listeners."""

    stage: str
    directory: Path  # becomes the artifact
    work: Path  # kept after a crash until the artifact is published: checkpoints, partial results
    inputs: Mapping[str, Path]
    send: Callable[[Event], None] = lambda event: None
    bad: Counter[str] = field(default_factory=Counter)

    def load(self, ref: Ref[A]) -> A:
        """Load the artifact of an input.

        Raises:
            UserError: If it has another type than the input expects, or a file is missing or damaged.
        """
        artifact = Artifact.load(self.inputs[ref], verify=False)
        artifact.verify(lambda count: self.log(f"comparing the hashes of {ref}: {count / 1e9:,.1f} GB to read"))
        if not ref.accepts(type(artifact)):
            raise UserError(
                f"{self.stage}: {ref}: expected a {ref.expected}, got a {type(artifact).__name__} ({self.inputs[ref]})"
            )
        return typing.cast("A", artifact)

    def name_of(self, artifact: Artifact) -> str:
        """Look up the name of an input in the recipe, for messages. Other artifacts have the name of their folder."""
        names = (name for name, path in self.inputs.items() if path == artifact.path)
        return next(names, artifact.path.name)

    def emit(self, type: str, **data: Any) -> None:  # noqa: A002
        """Send an event to the listeners (`vfm.interfaces.events` lists the types and their data)."""
        self.send(Event(type, self.stage, data))

    def progress(self, done: int, total: int | None, unit: str = "steps", /, **shown: Any) -> None:
        """Report progress. The console shows a bar with rate and ETA.

        Args:
            done: Finished units.
            total: All units. None if their number is not known, for a count with a rate and without ETA.
            unit: Name of the units.
            **shown: Further values to show.
        """
        self.emit("progress", done=done, total=total, unit=unit, shown=shown)

    def log(self, message: str) -> None:
        """Report one line to the user."""
        self.emit("log", message=message)

    def warn(self, message: str, *, lacks_data: bool = False) -> None:
        """Report one line that the user should not miss. It is also part of the report.

        Args:
            message: The line.
            lacks_data: The artifact lacks data that may come back, such as an unreadable shard. Runs that find it
                cached repeat the line. A stage that resumes must report it again if it still holds.
        """
        self.emit("warning", message=message, **({"lacks_data": True} if lacks_data else {}))

    def skip(self, reason: str, where: str, *, lacks_data: bool = False) -> None:
        """Count a bad sample by reason. The counts are in the manifest and the report.

        Args:
            reason: Why it cannot be used.
            where: Its address.
            lacks_data: It may come back, as in `warn`.
        """
        self.bad[reason] += 1
        self.emit("bad_sample", reason=reason, where=where, **({"lacks_data": True} if lacks_data else {}))

    def panel(self, panel: Panel) -> None:
        """Save a panel with the artifact, for the report."""
        panel.save(self.directory)
