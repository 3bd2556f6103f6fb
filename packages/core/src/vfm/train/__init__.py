"""The one training loop: a method writes a `Task`, `fit` trains it."""

from vfm.data.loader import Batch
from vfm.stage import Preempted
from vfm.train.dist import World, distributed, is_main, resolve_device, seed_everything
from vfm.train.loop import Data, fit
from vfm.train.optim import Ema, build_optimizer, lr_at
from vfm.train.task import Call, Frozen, Metrics, ParamGroup, Task

__all__ = [
    "Batch", "Call", "Data", "Ema", "Frozen", "Metrics", "ParamGroup", "Preempted", "Task", "World",
    "build_optimizer", "distributed", "fit", "is_main", "lr_at", "resolve_device", "seed_everything",
]  # fmt: skip
