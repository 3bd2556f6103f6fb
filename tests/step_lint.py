"""Waits for the GPU in a training step, found without one: `PYTHONPATH=tests python -m step_lint` prints a table.

Each training of `recipes/every_stage.yaml` runs a step of two micro-batches, forward, loss, replay and backward, on
contentless tensors of a CUDA device that need not exist. What would make the host wait there is counted by the file of
ours that calls it: a blocking copy, a value that the host reads, a size that depends on values. The bytes of tensors
that the forward pass leaves for the backward pass are counted too, in fp32 and for torch's own operations.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import graph_walk
from outside import ROOT
from vfm.data import Batch
from vfm.flow.recipe.recipe import Recipe, parse_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.plugin import Cost, Preflight, Training, load_function
from vfm.train import Task
from vfm.train.cost import estimate
from vfm.train.cost.live_bytes import LiveBytes
from vfm_kernels import use_kernels

RECIPE = ROOT / "tests/recipes/every_stage.yaml"
READS = {"_local_scalar_dense", "equal"}
SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
FOLDERS = ("train", "models", "prior", "dense", "detect", "segment", "video", "mllm", "losses")
DETECTORS = ("cascade", "federated", "losses", "objects", "pooling", "proposals", "model", "samples", "task")
DETECTOR_FILES = [f"detect/{name}.py" for name in DETECTORS]
# Why a file waits nevertheless.
KNOWN = {
    "prior/prior_task.py": "encodes captions of some samples and images of the others",
    "mllm/model.py": "the number of tokens in the answers depends on the texts",
    "mllm/task.py": "the number of tokens in the answers depends on the texts",
    # The forward pass waits for the same index, and is counted by its line.
    "backward/IndexBackward0": "the gradient of an index by a mask",
    "segment/matching.py": "matches queries with segments on the host",
    **dict.fromkeys(DETECTOR_FILES, "the number of boxes depends on their scores"),
}


class DeviceWaits(TorchDispatchMode):
    """Counts operations for which the host waits for a CUDA device, by kind and by the line of ours that calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kind := _wait(func._opname, args, kwargs or {}):
            self.found[kind, _caller()] += 1
        return func(*args, **(kwargs or {}))


def _wait(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Name what an operation waits for: a copy, a read or a shape; empty if it does not wait."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if name in ("_to_copy", "copy_"):
        target = torch.device(kwargs["device"]) if kwargs.get("device") else args[0].device
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        crosses = "cuda" in (target.type, tensors[-1].device.type) and target.type != tensors[-1].device.type
        return "copy" if crosses and (blocking or target.type == "cpu") else ""
    if not tensors or tensors[0].device.type != "cuda":
        return ""
    if name in READS | SHAPES:
        return "read" if name in READS else "shape"
    if name in INDEXED:
        parts = [part for part in args[1] if part is not None]
        if any(part.dtype in (torch.bool, torch.uint8) for part in parts):
            return "shape"
        return "copy" if any(part.device.type == "cpu" for part in parts) else ""
    return ""


def _caller() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        folder = path.parent.name
        if frame.f_code is graph_walk.call.__code__:
            return f"backward/{frame.f_locals['function'].name()}"
        if folder.startswith("vfm") or folder in FOLDERS:
            return f"{folder}/{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "nothing of ours"


def _file(line: str) -> str:
    return line.partition(":")[0]


@dataclass
class StepReport:
    """What a step of a task does on the device.

    Attributes:
        waits: number of waits by kind and line.
        kept_bytes: what the forward passes leave for the backward passes, at most.
        num_backward: number of backward passes.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept_bytes: int = 0
    num_backward: int = 0

    @property
    def unknown_waits(self) -> dict[tuple[str, str], int]:
        """Waits in files for which no reason is known."""
        return {where: count for where, count in self.waits.items() if _file(where[1]) not in KNOWN}


class StepOnCuda:
    """What `vfm plan --estimate` would measure, run on a device that this machine need not have.

    Args:
        task: task whose step is run.
        config: its configuration.
    """

    report: StepReport  # of the last step

    def __init__(self, task: Task[Any], config: Training) -> None:
        self.task = task

    def cost(self, inputs: Any, micro: int, number: int) -> Cost:
        """Run a step of two micro-batches. Its cost is not needed."""
        report = StepOnCuda.report = StepReport()
        batch = Batch(self.task.prepare(inputs), [""] * micro).to(torch.device("cuda"))
        self.task.before_step(0)
        live, waits, metrics = LiveBytes(), DeviceWaits(), {}
        live.hold([*self.task.parameters(), *self.task.buffers()])

        def backward(loss: Tensor) -> None:
            assert loss.device.type == "cuda"
            report.kept_bytes = max(report.kept_bytes, live.now - before)
            report.num_backward += 1
            graph_walk.backward(loss)

        with use_kernels("reference"), live, waits, graph_walk.walked_graphs():
            before = live.now
            metrics = self.task.accumulate(self.call, [batch, batch], backward, lambda index: None)
        assert {value.device.type for value in metrics.values()} == {"cuda"}
        report.waits = waits.found
        return Cost()

    def call(self, batch: Batch[Any], method: Any = None, /, *args: Any) -> Any:
        """Run a method of the task, as the loop does."""
        return (method or self.task)(batch.inputs, *args)


def every_training() -> tuple[Recipe, list[str]]:
    """Read the recipe with every stage, and list its trainings that can be estimated."""
    types = stage_types(load_plugins())
    recipe = parse_recipe(RECIPE.read_text(encoding="utf-8"), types, name="every", where=RECIPE.name)
    return recipe, [stage.name for stage in recipe.stages if isinstance(stage, Training) and stage.costs]


def lint(recipe: Recipe, name: str) -> StepReport:
    """Run a step of a training on the device and report its waits.

    Autocast is off where CUDA is not available, so models are in fp32.
    """
    stages = {stage.name: stage for stage in recipe.stages}
    # A folder's model is not known before it is imported.
    stages["openai"] = stages["openai"].model_copy(update={"source": "ViT-B-32"})
    ctx = Preflight(stages, {})
    in_fp32 = ctx.stages[name].runtime.model_copy(update={"device": "cpu"})
    stage = ctx.stages[name].model_copy(update={"runtime": in_fp32})
    with (
        patch.object(estimate, "DEVICE", "cuda"),
        patch.object(estimate, "_Step", StepOnCuda),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*CUDA is not available")
        cost = load_function(stage.costs)(stage, ctx)
    assert not [what for what in cost.unknown if not what.endswith("are assumed")]
    return StepOnCuda.report


def main() -> None:
    """Print a row for each training, or for those that are named."""
    recipe, names = every_training()
    names = sys.argv[1:] or names
    print("| training | backward passes | copies | reads | shapes | kept MiB | why it waits |")
    print("|---|--:|--:|--:|--:|--:|---|")
    for name in names:
        report = lint(recipe, name)
        kinds = Counter[str]()
        for (kind, _), count in report.waits.items():
            kinds[kind] += count
        counts = " | ".join(str(kinds[kind]) for kind in ("copy", "read", "shape"))
        reasons = {KNOWN.get(_file(line), f"UNKNOWN: {line}") for _, line in report.waits}
        kept = f"{report.kept_bytes / 2**20:.1f}"
        print(f"| {name} | {report.num_backward} | {counts} | {kept} | {'; '.join(sorted(reasons))} |", flush=True)


if __name__ == "__main__":
    main()
