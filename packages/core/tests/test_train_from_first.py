"""With FSDP rank 0 builds the weights: the others have none, no process has all, and the bits are those of rank 0."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from train_toy import fork, run_group
from vfm.plugin import Runtime, TrainingRuntime
from vfm.train import Frozen, Task, distributed, weights_from_first
from vfm.train.optim.state import as_whole
from vfm.train.parallel.gathering import gathered
from vfm.train.parallel.sharded import Sharded

FSDP = TrainingRuntime(device="cpu", parallel="fsdp")
WIDTH = 64
SHAPES = [(1,), (2,), (3, 5), (8,), (5, 1, 2), (1, 7), (16, 4)]


class Tied(Task[Tensor]):
    """Blocks, a weight with two names, a scalar, buffers, and a frozen model."""

    def __init__(self, seed: int, teacher: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(6)])
        self.table = nn.Embedding(3, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.tensor(float(seed)))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.norm.running_mean.fill_(seed)  # type: ignore[union-attr,operator]
        self.register_buffer("drawn", torch.rand(4), persistent=False)
        self.teacher = Frozen(teacher)

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head(self.norm(self.blocks(inputs))).square().mean() * self.scale, {}


def stored_bytes(module: nn.Module) -> int:
    """Count the bytes of the memory that a module's weights use."""
    local = (param.to_local() if isinstance(param, DTensor) else param for param in map(Tensor.detach, weights(module)))
    return sum({value.data_ptr(): value.untyped_storage().nbytes() for value in local}.values())


def weights(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters())


def place(folder: Path) -> None:
    """Place a task that has weights of another seed in each process, and one that has none but in rank 0."""
    results: dict[str, Any] = {}
    with distributed(Runtime(device="cpu")) as world:
        teacher = nn.Linear(WIDTH, 1)
        for name in ("other seeds", "on meta"):
            with weights_from_first(FSDP) if name == "on meta" else nullcontext():
                task = Tied(1 + world.rank, teacher)
            assert all(param.is_meta == (name == "on meta" and world.rank > 0) for param in task.parameters())
            expected = Tied(1, teacher)
            placed = Sharded(task, world, FSDP)
            placed.wrap(None)
            kept = stored_bytes(task) + stored_bytes(placed.task)
            with placed.whole() as whole:
                assert whole is task
                state, theirs = whole.state_dict(), expected.state_dict()
                assert state.keys() == theirs.keys()
                assert all(torch.equal(state[key], theirs[key]) for key in theirs)
                assert torch.equal(whole.drawn, expected.drawn)  # type: ignore[arg-type]
                assert whole.head.weight is whole.table.weight
            emptied = stored_bytes(task)
            loss, _ = placed.run(placed.task, torch.ones(2, WIDTH))
            loss.backward()
            finished = placed.finish()
            results[name] = [kept, emptied, stored_bytes(finished), stored_bytes(expected)]
            exact, _ = expected(torch.ones(2, WIDTH))
            assert float(world.mean(loss.detach())) == pytest.approx(float(exact), rel=1e-6)
        (folder / f"bytes-{world.rank}.json").write_text(json.dumps(results))


def gather(folder: Path) -> None:
    """Gather tensors of many shapes in buckets of several sizes."""
    with distributed(Runtime(device="cpu")) as world:
        mesh = init_device_mesh("cpu", (world.size,))
        tensors: dict[str, Tensor] = {"plain": torch.tensor(3.0)}
        for number, shape in enumerate(SHAPES * 2):
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(number))
            whole = whole.double() if number % 5 == 4 else whole
            tensors[str(number)] = distribute_tensor(whole, mesh, [Shard(0)])
        for limit in (1, 100, 10**6):
            values = dict(gathered(tensors.items(), limit))
            assert list(values) == list(tensors)
            for name, value in values.items():
                assert torch.equal(value, as_whole(tensors[name]))
                assert value.is_contiguous()
                padding = value[:1].nbytes * world.size if value.ndim else 0
                assert value.untyped_storage().nbytes() <= value.nbytes + padding  # not the whole bucket
    (folder / f"gathered-{world.rank}").touch()


@pytest.mark.parametrize("number", [2, 4])
def test_weights_and_buffers_are_those_of_rank_0_and_no_process_has_all(tmp_path: Path, number: int) -> None:
    run_group(__file__, "place", str(tmp_path), number=number)
    for rank in range(number):
        results = json.loads((tmp_path / f"bytes-{rank}.json").read_text())
        for kept, emptied, finished, whole in results.values():
            assert 0.9 * whole / number < kept < 1.1 * whole / number  # weights with few rows are cut unevenly
            assert emptied < whole / 100
            assert whole <= finished < 1.01 * whole if rank == 0 else finished == emptied


@pytest.mark.parametrize("number", [2, 3])
def test_buckets_of_rows_are_gathered_exactly(tmp_path: Path, number: int) -> None:
    run_group(__file__, "gather", str(tmp_path), number=number)
    assert len(list(tmp_path.iterdir())) == number


def test_without_fsdp_every_process_has_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with weights_from_first(TrainingRuntime(device="cpu")):
        assert not nn.Linear(2, 2).weight.is_meta
    with weights_from_first(FSDP):
        assert nn.Linear(2, 2).weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {"place": place, "gather": gather}[sys.argv[1]]
    fork(int(os.environ["WORLD_SIZE"]), lambda: work(Path(sys.argv[2])))
