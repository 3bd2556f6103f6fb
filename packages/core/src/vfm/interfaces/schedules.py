"""Learning-rate schedules."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vfm.base import Part


class Schedule(Part):
    """Base class of the learning-rate schedules.

    `build(lr, num_steps)` returns a function from the step (from 0) to the learning rate. The rate rises linearly to
    `lr` over `warmup_steps` before the actual schedule begins.
    """

    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly to lr")


class CosineSchedule(Schedule):
    """Half a cosine from `lr` to `min_lr`, as in open_clip."""

    type: Literal["cosine"] = Field("cosine", description="falls from lr to min_lr along half a cosine")
    work: ClassVar[str] = "vfm.train.optim.schedule:cosine"
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end")


class ConstantSchedule(Schedule):
    """Constant `lr`."""

    type: Literal["constant"] = Field("constant", description="stays at lr")
    work: ClassVar[str] = "vfm.train.optim.schedule:constant"


class WarmupStableDecay(Schedule):
    """`lr` for most steps, then a decay to `min_lr` (arXiv:2405.18392). With `continue_from`, it is a cool-down."""

    type: Literal["wsd"] = Field("wsd", description="stays at lr, and falls to min_lr over the last decay_steps")
    work: ClassVar[str] = "vfm.train.optim.schedule:warmup_stable_decay"
    decay_steps: int = Field(ge=1, description="steps at the end over which the learning rate falls")
    shape: Literal["linear", "sqrt", "cosine"] = Field(
        "linear", description="shape of the decay after a fraction x of it: 1 - x, 1 - sqrt(x), or half a cosine"
    )
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end")


class StepSchedule(Schedule):
    """`lr`, divided by 10 after given fractions of the steps, as in detectron2."""

    type: Literal["steps"] = Field("steps", description="is divided by 10 after each of some fractions of the steps")
    work: ClassVar[str] = "vfm.train.optim.schedule:steps"
    at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.8, 0.9], min_length=1, description="fractions of the steps after which the learning rate is divided by 10"
    )


class PolySchedule(Schedule):
    """A power of the remaining fraction of the steps, as in mmsegmentation."""

    type: Literal["poly"] = Field("poly", description="falls from lr to 0 as a power of the remaining steps")
    work: ClassVar[str] = "vfm.train.optim.schedule:poly"
    power: float = Field(0.9, gt=0, description="exponent")
