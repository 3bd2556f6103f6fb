"""A training step never waits for the device: on a GPU the host would fall behind by the whole queue.

No GPU is needed to find such waits: steps run on the CPU, and the calls that would wait on a GPU are counted where they
are made, forward and backward. Nor to find a tensor on the wrong device: a step's forward pass runs on contentless
tensors of a CUDA device, among which torch refuses those of the CPU.
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

from outside import ROOT
from small import QUICKSTART, words
from vfm.cli import main
from vfm.data import Batch
from vfm.flow.recipe.recipe import Recipe, parse_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.plugin import Cost, Preflight, Training, load_function
from vfm.train import Task
from vfm.train.cost import estimate
from vfm.train.loop.optimizer_step import OptimizerStep
from vfm_kernels import use_kernels

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose"}
SHAPES = {"nonzero", "masked_select", "unique"}  # the host must know how many there are
COPIES = {"new_tensor", "tensor", "as_tensor"}  # of numbers of the host
# The prior encodes captions of some samples and pictures of the others: it waits to learn which.
KNOWN = {"prior/prior_task.py"}
# The number of tokens in the answers depends on the texts.
KNOWN |= {"mllm/model.py", "mllm/task.py"}
# Queries are matched with segments on the host, and the number of a detector's boxes depends on their scores.
KNOWN |= {"segment/matching.py"}
KNOWN |= {f"detect/{file}.py" for file in ("cascade", "federated", "losses", "proposals", "model", "samples", "task")}
FOLDERS = ("train", "models", "prior", "dense", "detect", "segment", "video", "mllm")


class Waits(TorchFunctionMode):
    """Counts the calls that wait for a GPU, by the file of ours that makes them.

    Args:
        device: type of the device on which they are counted.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        here = args and isinstance(args[0], Tensor) and args[0].device.type == self.device
        made = name in COPIES and torch.device((kwargs or {}).get("device") or "cpu").type == self.device
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


class ForwardOnCuda:
    """What `vfm plan --estimate` would measure, run on a device that this machine need not have; forward only."""

    found: Counter[tuple[str, str]]

    def __init__(self, task: Task[Any], config: Training) -> None:
        self.task = task

    def cost(self, inputs: Any, micro: int, number: int) -> Cost:
        device = torch.device("cuda")
        batch = Batch(self.task.prepare(inputs), [""] * micro).to(device)
        self.task.before_step(0)
        losses: list[Tensor] = []
        with use_kernels("reference"), Waits("cuda") as waits:
            metrics = self.task.accumulate(self.call, [batch], losses.append, lambda index: None)
        assert {value.device.type for value in (*losses, *metrics.values())} == {"cuda"}
        assert all(loss.requires_grad for loss in losses)
        ForwardOnCuda.found = waits.found
        return Cost()

    def call(self, batch: Batch[Any], method: Any = None, /, *args: Any) -> Any:
        return (method or self.task)(batch.inputs, *args)


RECIPE = ROOT / "tests/recipes/every_stage.yaml"
TRAININGS = [
    "teacher", "eva", "eva_from_targets", "eva_of_two", "classifier", "segmenter", "detector", "watcher", "clip",
    "adapted", "prior", "diva", "aligned", "mllm",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(
        RECIPE.read_text(encoding="utf-8"), stage_types(load_plugins()), name="every", where=RECIPE.name
    )


def test_every_training_with_a_cost_is_tried_on_the_device(recipe: Recipe) -> None:
    assert [stage.name for stage in recipe.stages if isinstance(stage, Training) and stage.costs] == TRAININGS


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")  # so autocast is off, and models must be in fp32
@pytest.mark.parametrize("name", TRAININGS)
def test_a_forward_pass_has_all_tensors_on_the_device_and_does_not_wait_for_it(
    name: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "DEVICE", "cuda")
    monkeypatch.setattr(estimate, "_Step", ForwardOnCuda)
    stages = {stage.name: stage for stage in recipe.stages}
    # A folder's model is not known before it is imported.
    stages["openai"] = stages["openai"].model_copy(update={"source": "ViT-B-32"})
    ctx = Preflight(stages, {})
    in_fp32 = ctx.stages[name].runtime.model_copy(update={"device": "cpu"})
    stage = ctx.stages[name].model_copy(update={"runtime": in_fp32})
    cost = load_function(stage.costs)(stage, ctx)
    assert not [what for what in cost.unknown if not what.endswith("are assumed")]
    assert {where: count for where, count in ForwardOnCuda.found.items() if where[1] not in KNOWN} == {}


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
