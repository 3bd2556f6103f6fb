"""What the measurements share: a clock, folders, a configuration, a pool and a teacher."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch

from vfm.artifacts import Artifact, ClipCheckpoint, ImageDataset
from vfm.data.loader import Batch
from vfm.stage import Context
from vfm.stages.shapes import ShapesPool
from vfm_eva import EvaPretrain

STUDENT, TEACHER, GRID = "eva02_pico_patch8_64", "ViT-Mini-14-112", (8, 8)
CUDA = torch.cuda.is_available()


def clock() -> float:
    """Seconds: the wall's on a GPU, once it is done; those of this process on a CPU."""
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def context(folder: Path, **inputs: Artifact) -> Context:
    (folder / "artifact").mkdir(parents=True)
    (folder / "work").mkdir()
    return Context("eva", folder / "artifact", folder / "work", {name: made.path for name, made in inputs.items()})


def make_pool(folder: Path, num_samples: int) -> ImageDataset:
    """Pictures of shapes."""
    stage = ShapesPool.model_validate({"name": "pool", "num_samples": num_samples, "world": {"image_size": 64}})
    return stage.run(context(folder))


def pretrain(steps: int, batch: int, **changes: Any) -> EvaPretrain:
    settings = {"name": "eva", "data": "pool", "teacher": "teacher", "model": STUDENT, "mask": "block", "lr": 1e-3}
    runtime = {"threads": 1}
    return EvaPretrain.model_validate(
        {**settings, "min_lr": 1e-3, "steps": steps, "global_batch_size": batch, "runtime": runtime, **changes}
    )


class Bench:
    """A pool, a teacher, and what is measured of them."""

    def __init__(self, root: Path, pool: ImageDataset, teacher: ClipCheckpoint, *, quick: bool) -> None:
        self.root, self.pool, self.teacher = root, pool, teacher
        self.steps, self.rounds, self.batch = (6, 2, 8) if quick else (12, 4, 32)
        self.learning_steps = 12 if quick else 60
        self.numbers = itertools.count()

    def folder(self) -> Path:
        return self.root / str(next(self.numbers))

    def task(self, config: EvaPretrain) -> Any:
        return config._from_teacher(context(self.folder(), pool=self.pool, teacher=self.teacher))[0]


def moved(batch: Batch, device: str) -> Batch:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
