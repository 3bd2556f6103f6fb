"""Compiled, recomputed and channels-last layers give the losses of plain ones, under the same names in checkpoints."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from counted_operations import Counted
from train_toy import Pairs, Regression, plan, train
from vfm.base import UserError
from vfm.interfaces import Context, TrainingRuntime
from vfm.train import Frozen, Task
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.parallel.preparation import compiled, prepared, recomputed, to_channels_last

CPU = DistributedWorld(torch.device("cpu"))
# Dynamo reads `.grad` of every tensor; pytest would make an error of torch's warning.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.into(self.norm(x))))


def tower() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(Block(8), Block(8)), nn.Linear(8, 1))


class Distilled(Task[Pairs]):
    """Learn the targets and the outputs of a frozen model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.teacher = tower(), Frozen(tower())

    def forward(self, inputs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        guess = self.net(inputs.x)
        return F.mse_loss(guess, inputs.y) + 0.1 * F.mse_loss(guess, self.teacher(inputs.x)), {"guess": guess.mean()}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.needs("g++")
@pytest.mark.parametrize(
    ("choice", "mode"), [("blocks", "default"), ("whole", "default"), ("blocks", "reduce-overhead")]
)
def test_compiled_layers_give_the_losses_of_plain_ones(tmp_path, choice, mode):
    settings: dict[str, Any] = {"steps": 6, "log_every": 1, "micro_batch_size": 4}
    train(tmp_path / "plain", plan(**settings), task=Distilled())
    runtime = {"device": "cpu", "compile": choice, "compile_mode": mode}
    task, *_ = train(tmp_path / "compiled", plan(**settings, runtime=runtime), task=Distilled())
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    names = [set(load_file(tmp_path / name / "work" / "step-00000006" / "model.safetensors")) for name in
             ("plain", "compiled")]  # fmt: skip
    assert names[0] == names[1]
    assert all(module._compiled_call_impl is None for module in task.modules())


def test_blocks_of_frozen_models_are_compiled_too(tmp_path):
    ctx = Context("toy", tmp_path, tmp_path, {})
    task = Distilled()
    with prepared(task, TrainingRuntime(compile="blocks"), ctx, CPU):
        blocks = [*task.net[1], *task.teacher.module[1]]
        assert [block._compiled_call_impl is None for block in blocks] == [False] * 4
        assert task.net[0]._compiled_call_impl is None
    assert [block._compiled_call_impl is None for block in blocks] == [True] * 4


def test_selective_checkpointing_computes_activations_again_but_no_matrix_products():
    net = tower()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def gradients() -> tuple[Counter[str], list[Tensor]]:
        with Counted() as counted:
            grads = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
        return counted.calls, list(grads)

    plain, expected = gradients()
    with recomputed(list(net[1])):
        again, found = gradients()
        net.eval()
        assert gradients()[0]["gelu"] == plain["gelu"]  # not in evaluation mode
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert (again["addmm"], again["mm"]) == (plain["addmm"], plain["mm"])
    assert again["gelu"] == 2 * plain["gelu"]
    assert "forward" not in vars(net[1][0])


def test_a_task_without_blocks_and_batch_norms_on_a_cpu_are_one_line(tmp_path):
    ctx = Context("toy", tmp_path, tmp_path, {})
    with pytest.raises(UserError, match=r"toy: runtime\.compile: blocks: Regression has no list of equal blocks"):
        prepared(Regression(), TrainingRuntime(compile="blocks"), ctx, CPU).__enter__()
    with pytest.raises(UserError, match=r"runtime\.sync_batch_norm: .* on CUDA devices only, got cpu"):
        prepared(
            Regression(), TrainingRuntime(sync_batch_norm=True), ctx, DistributedWorld(CPU.device, 0, 2)
        ).__enter__()


def test_weights_of_convolutions_are_stored_with_channels_last_and_saved_as_before(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 2))
    x = torch.randn(2, 3, 8, 8)
    before, state = net(x), {name: value.clone() for name, value in net.state_dict().items()}
    to_channels_last(net)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-6)
    for name, value in net.state_dict().items():
        if not name.startswith("1.running") and name != "1.num_batches_tracked":
            assert torch.equal(value, state[name])


@pytest.mark.needs("g++")
def test_compiled_blocks_of_one_class_share_their_code():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = nn.Sequential(*(Block(8) for _ in range(6)))
    with compiled(list(net)):
        net(torch.randn(2, 8))
    # One for the first block, whose input needs no gradient, one for the others.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
