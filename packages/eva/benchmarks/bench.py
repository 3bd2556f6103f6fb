"""Shared by the benchmarks: a clock, folders, a configuration, a pool and a teacher."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

from vfm.data.synthetic.stages import ShapesPool
from vfm.plugin import Artifact, ClipCheckpoint, Context, ImageDataset
from vfm_eva import EvaPretrain
from vfm_eva.pretrain.pretrain import task_from_teacher

STUDENT, TEACHER, GRID = "eva02_pico_patch8_64", "ViT-Mini-14-112", (8, 8)
CUDA = torch.cuda.is_available()


def clock() -> float:
    """Read a clock in seconds: wall-clock time on a GPU after it has finished, process time on a CPU."""
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def report(result: dict[str, Any] | None, table: str, out: Path | None) -> None:
    """Print the table of a result, and write both next to each other if a path without an ending is given.

    Without a result only the table is written.
    """
    print(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        if result is not None:
            out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")


def context(folder: Path, **inputs: Artifact) -> Context:
    (folder / "artifact").mkdir(parents=True)
    (folder / "work").mkdir()
    return Context("eva", folder / "artifact", folder / "work", {name: made.path for name, made in inputs.items()})


def make_pool(folder: Path, num_samples: int) -> ImageDataset:
    """Make images of shapes."""
    stage = ShapesPool.model_validate({"name": "pool", "num_samples": num_samples, "world": {"image_size": 64}})
    return stage.run(context(folder))


def pretrain(steps: int, batch: int, **changes: Any) -> EvaPretrain:
    settings = {"name": "eva", "data": "pool", "teacher": "teacher", "model": STUDENT, "lr": 1e-3}
    runtime = {"threads": 1}
    return EvaPretrain.model_validate(
        {
            **settings,
            "schedule": {"min_lr": 1e-3},
            "steps": steps,
            "global_batch_size": batch,
            "runtime": runtime,
            **changes,
        }
    )


class Bench:
    """A pool, a teacher, and the sizes of a measurement."""

    def __init__(self, root: Path, pool: ImageDataset, teacher: ClipCheckpoint, *, quick: bool) -> None:
        self.root, self.pool, self.teacher = root, pool, teacher
        self.steps, self.rounds, self.batch = (6, 2, 8) if quick else (12, 4, 32)
        self.learning_steps = 12 if quick else 60
        self.numbers = itertools.count()

    def folder(self) -> Path:
        return self.root / str(next(self.numbers))

    def task(self, config: EvaPretrain) -> Any:
        return task_from_teacher(config, context(self.folder(), pool=self.pool, teacher=self.teacher))[0]
