"""Training: a method implements a `Task`, `fit` trains it on `TrainingData`."""

from vfm.data.batch import Batch, Make, Ragged, SampleDraw, map_tensors
from vfm.data.cache_filling import Crops, MakeCrops, fill_cache
from vfm.data.eval_loader import eval_batches, ordered_batches
from vfm.data.loader import TrainingData
from vfm.data.prefetch import prefetch
from vfm.data.transforms import ImageTransform, to_tensor
from vfm.stage import Preempted
from vfm.train.alarm import Alarm
from vfm.train.curves import METRICS_FILE
from vfm.train.data import Data
from vfm.train.dist import World, distributed, is_main, prepare_device, resolve_device, seed_everything
from vfm.train.ema import Ema
from vfm.train.estimate import estimate_training
from vfm.train.kernels import check_kernels
from vfm.train.live_bytes import LiveBytes
from vfm.train.loop import fit
from vfm.train.optim import build_optimizer, set_lr
from vfm.train.pictures import show_panels
from vfm.train.sharing import in_batches, leave_to_first, of_all, own_share
from vfm.train.task import Call, Frozen, Metrics, ParamGroup, Task

__all__ = [
    "METRICS_FILE", "Alarm", "Batch", "Call", "Crops", "Data", "Ema", "Frozen", "ImageTransform", "LiveBytes", "Make",
    "MakeCrops", "Metrics", "ParamGroup", "Preempted", "Ragged", "SampleDraw", "Task", "TrainingData", "World",
    "build_optimizer", "check_kernels", "distributed", "estimate_training", "eval_batches", "fill_cache", "fit",
    "in_batches", "is_main", "leave_to_first", "map_tensors", "of_all", "ordered_batches", "own_share", "prefetch",
    "prepare_device", "resolve_device", "seed_everything", "set_lr", "show_panels", "to_tensor",
]  # fmt: skip
