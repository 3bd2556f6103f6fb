"""Hand out GPUs to steps. A step takes one per process while it runs, and no two steps share one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from vfm.interfaces import Stage

GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass
class Devices:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, and the free ones among them."""

    all: list[str] = field(default_factory=lambda: _visible_gpus())
    free: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = list(self.all)

    def take(self, stage: Stage) -> list[str] | None:
        """Take the GPUs that a stage needs.

        A stage that names a GPU by number takes this GPU. A stage that needs more GPUs than exist takes all, and fails
        later.

        Returns:
            The GPUs, or None if they are not free yet.
        """
        kind, _, number = stage.runtime.device.partition(":")
        if not self.all or not stage.on_device or kind not in ("auto", "cuda"):
            return []
        processes = stage.runtime.processes if stage.in_processes else 1
        wanted = min(len(self.all), processes)
        taken = self.free[:wanted]
        if number:
            taken = self.all[int(number) : int(number) + 1]
        if not set(taken) <= set(self.free) or (len(taken) < wanted and not number):
            return None
        self.free = [gpu for gpu in self.free if gpu not in taken]
        return taken

    def give_back(self, gpus: list[str]) -> None:
        """Free what `take` returned."""
        self.free = [gpu for gpu in self.all if gpu in {*self.free, *gpus}]


def environment_of(stage: Stage, gpus: list[str]) -> dict[str, str]:
    """Set the variables of a step for its GPUs.

    None are set if `runtime.device` has a number, because the number counts all GPUs.
    """
    named = ":" in stage.runtime.device
    if not gpus or named:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def _visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return list(filter(None, visible.split(",")))
    if not GPUS.is_dir():
        return []
    return list(map(str, range(len(list(GPUS.iterdir())))))
