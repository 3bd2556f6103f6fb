"""Optimizers of timm's factory as a choice of the slot `optimizer`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.interfaces.training import Optimizer

# Only optimizers whose whole state is tensors, so that a training run resumes exactly.
# tests/test_train_timm_optimizers.py resumes each of them.
Algorithm = Literal[
    "adafactorbv", "adamuon", "adopt", "cadamw", "clion", "lars", "lion", "muon", "nadamuon", "nadamw", "radam"
]  # fmt: skip
# Optimizers whose step torch can compute on sharded weights. The state of adafactorbv has other shapes than the
# weights, which no checkpoint shards. The others change a sharded tensor in place in a way that torch does not support.
SHARDED = {"adopt", "lars", "lion", "nadamw", "radam"}


class TimmOptimizer(Optimizer):
    """An optimizer of timm's factory, such as Muon or Lion.

    Before each step, the host waits for the device, to skip steps that are not finite. The other optimizers check this
    on the device.
    """

    type: Literal["timm"] = Field("timm", description="an optimizer of timm's factory")
    work: ClassVar[str] = "vfm.train.optim.optim:build_timm"
    algorithm: Algorithm = Field(description="name in timm")
    options: dict[str, float | bool | str | list[float]] = Field(
        {}, description="further arguments of timm's class, such as {momentum: 0.95}"
    )

    @property
    def algorithm_name(self) -> str:
        """Its name in timm. Every optimizer has another name."""
        return self.algorithm

    @property
    def can_shard(self) -> bool:
        """Whether torch can compute its step on sharded weights."""
        return self.algorithm in SHARDED
