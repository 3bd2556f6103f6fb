"""A stage is its frozen configuration: what it takes (`Ref`s), what it makes (`run`'s annotation), and how."""

from __future__ import annotations

import signal
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import core_schema

from vfm.artifacts import Artifact
from vfm.config import Config, UserError
from vfm.events import Event
from vfm.panels import Panel

A = TypeVar("A", bound=Artifact)


class Ref(str, Generic[A]):
    """An input: an earlier stage's name, or the path of a saved artifact. `Ref[Pool]` takes a Pool or a subtype."""

    target: Any  # the wanted type, or a union of types

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        (target,) = get_args(source)

        def build(value: str) -> Ref[A]:
            ref: Ref[A] = cls(value)
            ref.target = target
            return ref

        return core_schema.no_info_after_validator_function(build, core_schema.str_schema(min_length=1))

    def accepts(self, made: type[Artifact]) -> bool:
        """Whether an artifact of type `made` fits here."""
        wanted = get_args(self.target) if isinstance(self.target, UnionType) else (self.target,)
        return issubclass(made, wanted)

    @property
    def wanted(self) -> str:
        """The wanted type in words."""
        types = get_args(self.target) if isinstance(self.target, UnionType) else (self.target,)
        return " or ".join(kind.__name__ for kind in types)


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Runtime(Config):
    """How a stage runs, never what it makes: what belongs to a sample (place, crop, mask, caption) hangs on none of it.

    What is left is rounding and, with several `processes`, what torch draws within a model (dropout, drop path) and
    what is taken over a process' share of the batch (batch norm's statistics).
    """

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: CUDA where there is one, else CPU"
    )
    processes: int = Field(1, ge=1, description="training processes on this machine, started with torchrun")
    workers: int = Field(
        0, ge=0, description="processes that read and decode samples, for each training process; 0: a thread does"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads to compute with; default: one a core. Small models on a busy machine want 1",
    )
    kernels: Literal["auto", "reference", "triton"] = Field(
        "auto",
        description="of a training: auto takes fused Triton kernels on CUDA devices from Ampere on, where its model has"
        " layers for them; reference: plain torch, their specification; triton: the kernels or an error",
    )
    pad_widths: bool = Field(
        False,
        description="of a training: store SwiGLU and patch-embedding weights at widths that tensor cores like (2730 as"
        " 2752, 588 as 592); checkpoints are those of the model as it was",
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="what runs the shards of curation: `workers` processes of this machine, or tasks of Ray"
    )
    ray_address: str | None = Field(
        None,
        description="the Ray cluster: auto for the one that `ray start` left running here, or HOST:PORT;"
        " default: one of this stage's own, with `workers` CPUs (0: all)",
    )

    @model_validator(mode="after")
    def _one_device_each(self) -> Runtime:
        if self.processes > 1 and ":" in self.device:
            raise ValueError(f"{self.processes} processes cannot share {self.device}; write cuda: each takes its own")
        return self


class Stage(Config):
    """One step of a recipe. A plugin subclasses it, or better the interface that fits (`vfm.interfaces`).

    The class holds no work. `work` and `checks` name functions as `"package.module:function"`; their modules are
    imported when the stage runs, so that a configuration stays light and a module of work imports what it needs at its
    top. A small plugin may override `run` and `preflight` instead.

    Class rules, checked at definition: `kind` is a `Literal["domain.verb"]`; `makes` is the type of artifact, taken
    from the annotation of `run` where a subclass overrides it. `version` is raised by hand when the result for the
    same configuration changes.
    """

    kind: str
    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(@\d+)?$", description="how later stages refer to this one")
    runtime: Runtime = Field(Runtime(), description="how it runs: device, processes, workers, threads")

    version: ClassVar[int] = 1
    makes: ClassVar[type[Artifact]] = Artifact
    work: ClassVar[str] = ""  # (config, Context) -> artifact
    checks: ClassVar[str] = ""  # (config, Preflight) -> None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if "run" in cls.__dict__:
            made = typing.get_type_hints(cls.run).get("return")
            if not (isinstance(made, type) and issubclass(made, cls.makes)):
                raise TypeError(f"expected {cls.__name__}.run to be annotated with a {cls.makes.__name__}, got {made}")
            cls.makes = made
        elif get_args(cls.model_fields["kind"].annotation) and not cls.work and cls.run is Stage.run:
            raise TypeError(f"{cls.__name__} has a kind but no work: set `work`, or override `run`")

    @classmethod
    def kind_name(cls) -> str:
        """The value of `kind`, e.g. "eva.pretrain"."""
        (name,) = get_args(cls.model_fields["kind"].annotation)
        return str(name)

    def run(self, ctx: Context) -> Artifact:
        """Make the artifact in `ctx.directory`, by the function that `work` names."""
        made: Artifact = load_function(self.work)(self, ctx)
        return made

    def sources(self) -> Iterable[str]:
        """Outside files that the result depends on. Their fingerprints enter the id: a changed file means a new id."""
        return ()

    def preflight(self, ctx: Preflight) -> None:
        """Check what can be known before anything runs: names exist, widths fit, one sample decodes.

        Raises:
            UserError: one line that says what does not fit and how to fix it.
        """
        if self.checks:
            load_function(self.checks)(self, ctx)


def load_function(address: str) -> Callable[..., Any]:
    """Import the function at `"package.module:function"`."""
    module, _, name = address.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def refs(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Ref[Any]]]:
    """Every input of a stage as (dotted key, ref), also those in nested parts and lists."""
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
    """The training was told to stop (SIGTERM) and has saved a checkpoint; the next run goes on from there.

    Left alone it ends the process with code 143, as the signal would have done.
    """

    def __init__(self, message: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass
class Preflight:
    """What is known before a run: earlier stages' configurations, and artifacts that are there already."""

    stages: Mapping[str, Stage]
    artifacts: Mapping[str, Path]

    def artifact(self, ref: Ref[A]) -> A | None:
        """The artifact behind a ref where it is there already, else None."""
        path = self.artifacts.get(ref)
        return typing.cast("A", Artifact.load(path)) if path else None

    def stage(self, ref: str) -> Stage | None:
        """The stage that makes the input, where it is one of this recipe."""
        return self.stages.get(ref)


@dataclass
class Context:
    """What a running stage is given: its folders, its inputs, and a voice."""

    stage: str
    directory: Path  # what is written here becomes the artifact
    work: Path  # kept through crashes until the artifact is published: checkpoints, partial results
    inputs: Mapping[str, Path]
    send: Callable[[Event], None] = lambda event: None
    bad: Counter[str] = field(default_factory=Counter)

    def load(self, ref: Ref[A]) -> A:
        """The artifact behind an input."""
        artifact = Artifact.load(self.inputs[ref])
        if not ref.accepts(type(artifact)):
            raise UserError(
                f"{self.stage}: {ref} wants a {ref.wanted}; {self.inputs[ref]} is a {type(artifact).__name__}"
            )
        return typing.cast("A", artifact)

    def emit(self, type: str, **data: Any) -> None:  # noqa: A002
        """Tells the listeners something (`vfm.events` lists the types and what each carries)."""
        self.send(Event(type, self.stage, data))

    def progress(self, done: int, total: int, unit: str = "steps", /, **shown: Any) -> None:
        """Tells how far the stage is; the console makes a bar with rate and ETA of it."""
        self.emit("progress", done=done, total=total, unit=unit, shown=shown)

    def log(self, message: str) -> None:
        """One line for the user."""
        self.emit("log", message=message)

    def warn(self, message: str) -> None:
        """One line that the user should not miss; it is also kept in the report."""
        self.emit("warning", message=message)

    def skip(self, reason: str, where: str) -> None:
        """Counts a bad sample by reason; the counts go into the manifest and the report."""
        self.bad[reason] += 1
        self.emit("bad_sample", reason=reason, where=where)

    def panel(self, panel: Panel) -> None:
        """Leaves something to look at beside the artifact; the report draws it."""
        panel.save(self.directory)
