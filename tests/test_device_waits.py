"""A training step never waits for the device: on a GPU the host would fall behind by the whole queue.

No GPU is needed to find such waits: steps run on the CPU, and the calls that would wait on a GPU are counted where they
are made, forward and backward. Nor to find a tensor on the wrong device: a step of each training runs on contentless
tensors of a CUDA device (`step_lint`), among which torch refuses those of the CPU.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import graph_walk
from small import QUICKSTART, words
from step_lint import FOLDERS, KNOWN, DeviceWaits, every_training, lint
from vfm.cli import main
from vfm.flow.recipe.recipe import Recipe
from vfm.train.cost.contentless import contentless
from vfm.train.loop.optimizer_step import OptimizerStep

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose"}
SHAPES = {"nonzero", "masked_select", "unique"}  # the host must know how many there are
COPIES = {"new_tensor", "tensor", "as_tensor"}  # of numbers of the host
TRAININGS = [
    "teacher", "eva", "eva_from_targets", "eva_of_two", "classifier", "segmenter", "detector", "watcher", "clip",
    "adapted", "prior", "diva", "aligned", "mllm",
]  # fmt: skip


class Waits(TorchFunctionMode):
    """Counts the calls that would wait if the tensors of the CPU were a GPU's, by the file of ours that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        here = args and isinstance(args[0], Tensor) and args[0].device.type == "cpu"
        made = name in COPIES and torch.device((kwargs or {}).get("device") or "cpu").type == "cpu"
        waits = name in READS | SHAPES or _copies(name, args, kwargs or {}) or _indexes_by_a_mask(name, args)
        if waits and (here or made):
            frames = [Path(frame.filename).parts[-2:] for frame in traceback.extract_stack()]
            ours = ["/".join(parts) for parts in frames if parts[0].startswith("vfm") or parts[0] in FOLDERS]
            self.found[name, ours[-1]] += 1
        return func(*args, **(kwargs or {}))


def _copies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether numbers of the host become a tensor of the device; `torch.tensor` alone makes one of the host."""
    if name == "new_tensor":
        return True
    return name in COPIES and "device" in kwargs and not isinstance(args[0], Tensor)


def _indexes_by_a_mask(name: str, args: tuple[Any, ...]) -> bool:
    if name != "__getitem__":
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index)


def test_the_counter_finds_each_kind_of_wait():
    def example(x: Tensor) -> None:
        x.sum().item()
        bool(x.any())
        x.new_tensor([1.0])
        torch.tensor([1.0], device=x.device)
        x[x > 0]
        torch.tensor([1.0]).to(x.device, non_blocking=True)  # no wait

    code = compile("def call(function, x):\n    function(x)\n", "/vfm_ours/call.py", "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    with Waits() as waits:
        names["call"](example, torch.ones(3))
    assert sum(waits.found.values()) == 5
    assert {file for _, file in waits.found} == {"vfm_ours/call.py"}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return every_training()[0]


def test_every_training_with_a_cost_is_tried_on_the_device() -> None:
    assert every_training()[1] == TRAININGS


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_has_all_tensors_on_the_device_and_does_not_wait_for_it(name: str, recipe: Recipe) -> None:
    report = lint(recipe, name)
    assert report.unknown_waits == {}
    assert report.num_backward == 2
    assert report.kept_bytes > 0


def planted(kind: str, x: Tensor) -> Tensor:
    """Return a loss of a tensor of the device; the step waits in a way, or not."""

    class InBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * gradient.max().item()

    host = torch.ones(3)
    ways = {
        "none": lambda: x * host.to(x.device, non_blocking=True),
        "copy": lambda: x * host.to(x.device),
        "copy of numbers": lambda: x * torch.tensor([1.0, 2.0, 3.0], device=x.device),
        "copy into": lambda: x * torch.empty_like(x).copy_(host),
        "copy to the host": lambda: x * host.copy_(x, non_blocking=True).to(x.device, non_blocking=True),
        "copy of an index": lambda: x[torch.tensor([0, 2])],
        "read": lambda: x * x.sum().item(),
        "read of a condition": lambda: x if x.sum() > 0 else -x,
        "read in the backward pass": lambda: InBackward.apply(x),
        "shape": lambda: x[x > 0],
        "shape of a list": lambda: x[torch.nonzero(x > 0)[:, 0]],
    }
    return ways[kind]().sum()


@pytest.mark.parametrize(
    "kind",
    [
        "none", "copy", "copy of numbers", "copy into", "copy to the host", "copy of an index", "read",
        "read of a condition", "read in the backward pass", "shape", "shape of a list",
    ],
)  # fmt: skip
def test_a_planted_wait_is_found(kind: str) -> None:
    with contentless():
        x = torch.ones(3, device="cuda", requires_grad=True)
        with DeviceWaits() as waits:
            graph_walk.backward(planted(kind, x))
    assert {found for found, _ in waits.found} == ({kind.split()[0]} - {"none"})


def test_the_walk_has_the_gradients_of_the_engine() -> None:
    """Broadcasts, several results, a function of ours, checkpoints, mixed dtypes and a weight that is used twice."""
    layer = torch.nn.Linear(4, 6)
    x = torch.randn(2, 4, requires_grad=True)

    def loss() -> Tensor:
        first, second = layer(x).chunk(2, dim=-1)
        first = checkpoint(lambda value: value.sin().exp(), first, use_reentrant=False)
        return (Doubled.apply(first)[0] * layer.weight.sum()).sum() + second.bfloat16().float().norm()

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * value, value.sum()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor, of_sum: Tensor) -> Tensor:
            return 2 * gradient + of_sum

    wanted = [x, layer.weight, layer.bias]
    expected = torch.autograd.grad(loss(), wanted)
    torch.testing.assert_close(graph_walk.grad(loss(), wanted), expected)
    hidden = layer(x)
    top = hidden.square().sum()
    torch.testing.assert_close(graph_walk.grad(top, hidden), torch.autograd.grad(top, hidden))


def test_no_step_of_eva_clip_and_diva_waits_for_the_device(tmp_path, monkeypatch):
    waits, steps, optimize = Waits(), Counter[str](), OptimizerStep.__call__

    def counted(self: Any, *args: Any) -> Tensor:
        steps[type(self.placed.task).__name__] += 1
        with waits:
            return optimize(self, *args)

    monkeypatch.setattr(OptimizerStep, "__call__", counted)
    arguments = ["vfm", "run", "quickstart", "--store", str(tmp_path / "store"), "--quiet", *words(QUICKSTART)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert {"EvaTask", "ClipTask", "TuneTask", "PriorTask"} <= set(steps), steps
    assert {where: count for where, count in waits.found.items() if where[1] not in KNOWN} == {}
