"""Optimizers of timm's factory as a choice of the slot `optimizer`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.interfaces.training import Optimizer

# Those of timm's whose whole state is tensors, so that a training resumes exactly; tests/test_train_timm_optimizers.py
# resumes each of them.
Algorithm = Literal[
    "adafactorbv", "adamuon", "adopt", "cadamw", "clion", "lars", "lion", "muon", "nadamuon", "nadamw", "radam"
]  # fmt: skip
# Those whose step torch can take on sharded weights. Of the others adafactorbv has state in other shapes than weights,
# which no checkpoint shards, and the rest change a sharded tensor in place in a way that torch cannot.
SHARDED = {"adopt", "lars", "lion", "nadamw", "radam"}


class TimmOptimizer(Optimizer):
    """An optimizer of timm's factory, such as Muon or Lion.

    Before each step the host waits for the device, to leave out steps that are not finite; the other optimizers do this
    on the device.
    """

    type: Literal["timm"] = Field("timm", description="an optimizer of timm's factory")
    work: ClassVar[str] = "vfm.train.optim.optim:build_timm"
    algorithm: Algorithm = Field(description="its name in timm")
    options: dict[str, float | bool | str | list[float]] = Field(
        {}, description="further arguments of its class in timm, such as {momentum: 0.95}"
    )

    @property
    def algorithm_name(self) -> str:
        """Its name in timm, which no other type of optimizer has."""
        return self.algorithm

    @property
    def can_shard(self) -> bool:
        """Whether torch can take its step on sharded weights."""
        return self.algorithm in SHARDED
