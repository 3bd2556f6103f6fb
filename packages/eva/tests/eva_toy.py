"""A pre-training small enough for tests; as a script, one of several processes of a training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm.data import Batch
from vfm.data.synthetic.stages import ShapesPool
from vfm.interfaces import LeftToFirst
from vfm.models import build_clip, build_vision, save_clip
from vfm.plugin import (
    Artifact,
    ClipCheckpoint,
    Context,
    Event,
    Pool,
    VisionCheckpoint,
)
from vfm_eva import EvaPretrain
from vfm_eva.pretrain.task import EvaInputs, EvaTask
from vfm_eva.targets.teacher import Teacher
from vfm_kernels import block_mask

STUDENT = "eva02_pico_patch8_32"  # 4 x 4 patches
NUM_MASKED = 7


def make_pool(folder: Path, num_samples: int = 200) -> Pool:
    """Make images of shapes, 64 pixels, so that crops at several sizes differ."""
    stage = ShapesPool(kind="shapes.pool", name="pool", num_samples=num_samples)
    return stage.run(context(folder))


def make_teacher(folder: Path, model: str | dict[str, Any] = "ViT-Pico-8-32") -> ClipCheckpoint:
    """Save a CLIP model with random weights whose patch features differ more than those of a new model."""
    clip = build_clip(model, seed=0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in clip.module.visual.named_parameters():
        if name.endswith("bias") or "embedding" in name:  # parameters that add the same to all images
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return save_clip(clip, folder)


def make_task(
    teacher: Teacher, student: str = STUDENT, num_masked: int | None = NUM_MASKED, **arguments: Any
) -> EvaTask:
    """Return a task without the zeros and ones of new models, with which a missing norm or bias would not show."""
    task = EvaTask(build_vision(student, num_classes=0, seed=0, **arguments), teacher, num_masked=num_masked)
    generator = torch.Generator().manual_seed(1)
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return task.eval()


def random_inputs(masks: Callable[..., Tensor] = block_mask, size: int = 32, grid: int = 4) -> EvaInputs:
    """Return four masked images of noise."""
    images = torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    bool_mask = masks(range(4), (grid, grid), NUM_MASKED)
    return EvaInputs(images, bool_mask)


def batch_of(inputs: EvaInputs) -> Batch[EvaInputs]:
    """Return a batch with numbers as keys."""
    return Batch(inputs, [str(number) for number in range(len(inputs.images))])


def stage(**changes: Any) -> EvaPretrain:
    """Return a configuration that trains in a second."""
    settings = {
        "name": "eva",
        "data": "pool",
        "teacher": "teacher",
        "model": STUDENT,
        "steps": 6,
        "global_batch_size": 8,
        "log_every": 1,
        "runtime": {"device": "cpu"},
    }
    return EvaPretrain.model_validate(settings | changes)


def context(folder: Path, send: Callable[[Event], None] = lambda event: None, **inputs: Artifact) -> Context:
    """Return a context with folders and inputs."""
    (folder / "artifact").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    paths = {name: artifact.path for name, artifact in inputs.items()}
    return Context("eva", folder / "artifact", folder / "work", paths, send)


def losses(folder: Path) -> list[float]:
    """Return the loss of every step of a stage that ran in `folder`."""
    lines = (folder / "artifact" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def run(folder: Path, settings: dict[str, Any], **inputs: Artifact) -> VisionCheckpoint:
    """Run the stage in `folder`."""
    return stage(**settings).run(context(folder, **inputs))


def run_in_processes(root: Path, settings: dict[str, Any], pool: Artifact, teacher: Artifact) -> Path:
    """Run the stage in two processes, whose folders differ but for the work, as in the flow; return the first one."""
    run_group(__file__, *([f"{root}-{rank}", pool.path, teacher.path, json.dumps(settings)] for rank in range(2)))
    return Path(f"{root}-0")


def run_group(file: str, *words: Sequence[str | Path]) -> None:
    """Run a module in processes of a group, each with its words."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(words)), "OMP_NUM_THREADS": "1"}
    children = []
    for rank, of_rank in enumerate(words):
        command = [sys.executable, file, *map(str, of_rank)]
        environment = {**os.environ, **shared, "RANK": str(rank)}
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for child in children:
        _, stderr = child.communicate(timeout=1800)
        assert child.returncode == 0, stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, pool_folder, teacher_folder, settings = sys.argv[1:]
    own = context(Path(root), pool=Pool.load(pool_folder), teacher=ClipCheckpoint.load(teacher_folder))
    shared = replace(own, work=Path(root).with_name(Path(root).name[:-1] + "0") / "work")
    with suppress(LeftToFirst):
        stage(**json.loads(settings)).run(shared)
