"""Memory and precision of several processes: gathered weights are freed, and gradients are averaged in fp32."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train_toy import fork, run_group
from vfm.plugin import Runtime, TrainingRuntime
from vfm.train import Task, distributed
from vfm.train.cost.operations import Operations
from vfm.train.parallel.replicated import Replicated
from vfm.train.parallel.sharded import Sharded

WIDTH, NUM_BLOCKS, NUM_SAMPLES = 128, 4, 2


class Tower(Task[Tensor]):
    """Blocks whose weights are much larger than their activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential()
        for _ in range(NUM_BLOCKS):
            self.blocks.append(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = inputs
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden).float().square().mean(), {"dtype": torch.tensor(float(hidden.dtype == torch.float32))}


class OneWeight(Task[Tensor]):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.weight * inputs).sum(), {}


def bytes_after_forward(runtime: TrainingRuntime, half: torch.dtype | None, *, autocast: bool) -> dict[str, Any]:
    """Run a forward and a backward pass, and count the bytes that autograd still stores between them."""
    stored: list[torch.UntypedStorage] = []

    def store(tensor: Tensor) -> Tensor:
        stored.append(tensor.untyped_storage())
        return tensor

    with distributed(runtime) as world:  # within another one, whose processes it uses
        placed = Sharded(Tower(), world, runtime)
        placed.wrap(half)
        inputs = torch.randn(NUM_SAMPLES, WIDTH, generator=torch.Generator().manual_seed(world.rank))
        with (
            torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor),
            torch.autocast("cpu", enabled=autocast),
            Operations() as forward,
        ):
            loss, metrics = placed.run(placed.task, inputs)
        sizes = {storage.data_ptr(): storage.nbytes() for storage in stored}
        with Operations() as backward:
            loss.backward()
        grads = {str(param.grad.dtype) for param in placed.task.parameters() if param.grad is not None}
        return {
            "bytes": sum(sizes.values()),
            "loss": float(world.mean(loss.detach())),
            "fp32 between blocks": bool(metrics["dtype"]),
            "gradients": sorted(grads),
            "flops": [forward.flops, backward.flops, forward.repeated + backward.repeated],
        }


def measure(folder: Path) -> None:
    bf16 = torch.bfloat16
    runs = [("fp32", None, True), ("copied", None, True), ("bf16", bf16, True), ("bf16, whole", bf16, False)]
    results = {}
    with distributed(Runtime(device="cpu")) as world:
        for name, half, reshard in runs:
            runtime = TrainingRuntime(device="cpu", parallel="fsdp", reshard=reshard)
            results[name] = bytes_after_forward(runtime, half, autocast=name != "fp32")
        if world.is_main:
            (folder / "results.json").write_text(json.dumps(results))


def average(folder: Path) -> None:
    with distributed(Runtime(device="cpu")) as world:
        placed = Replicated(OneWeight(), world)
        placed.wrap(torch.bfloat16)
        loss, _ = placed.run(placed.task, torch.tensor([1.0 if world.is_main else 2.0**-9]))
        loss.backward()
        (folder / f"gradient-{world.rank}.txt").write_text(str(float(placed.task.weight.grad)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_gathered_weight_is_stored_between_the_passes(tmp_path: Path) -> None:
    run_group(__file__, "measure", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    weights = 2 * NUM_BLOCKS * WIDTH * WIDTH  # bytes of all matrices in bf16
    assert results["fp32"]["bytes"] < weights / 10
    assert results["bf16"]["bytes"] < weights / 10
    assert results["copied"]["bytes"] > weights / 2  # by autocast, from weights that are gathered in fp32
    assert results["bf16, whole"]["bytes"] > weights / 2
    forward = 2 * NUM_SAMPLES * WIDTH * (NUM_BLOCKS * WIDTH + 1)
    first = 2 * NUM_SAMPLES * WIDTH * WIDTH  # the first block's inputs need no gradient
    assert all(result["flops"] == [forward, 2 * forward - first, 0] for result in results.values())
    for name in ("bf16", "bf16, whole"):
        assert results[name]["loss"] == pytest.approx(results["fp32"]["loss"], rel=2e-2)
        assert results[name]["fp32 between blocks"]
        assert results[name]["gradients"] == ["torch.float32"]


@pytest.mark.slow
def test_gradients_in_bf16_are_averaged_in_fp32(tmp_path: Path) -> None:
    run_group(__file__, "average", str(tmp_path), number=4)
    exact = (1 + 3 * 2.0**-9) / 4
    for rank in range(4):
        gradient = float((tmp_path / f"gradient-{rank}.txt").read_text())
        assert gradient == float(torch.tensor(exact).bfloat16())  # a sum in bf16 would be 1, the mean 0.25
        assert gradient > 0.25


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {"measure": measure, "average": average}[sys.argv[1]]
    fork(int(os.environ["WORLD_SIZE"]), lambda: work(Path(sys.argv[2])))
