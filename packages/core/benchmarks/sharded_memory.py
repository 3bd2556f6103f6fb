"""Train a model whose state is larger than the memory that each process may use.

    python packages/core/benchmarks/sharded_memory.py [--width 3072] [--page FILE]

The state of a training is five numbers for each weight: weight, gradient, two moments of AdamW, average. Each process
may allocate a limited share of its bytes (RLIMIT_DATA, beyond what the process has after its imports). A training has
two steps, an evaluation and a checkpoint. Its processes are forked from this one. Peaks are of resident memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm.data import Batch
from vfm.plugin import Artifact, Context, Evaluation, Ref, Report, Training, TrainingRuntime
from vfm.train import Task, distributed, fit, weights_from_first

NUM_BLOCKS, COPIES = 12, 5
CASES = [(2, "fsdp", 0.75), (4, "fsdp", 0.5), (1, "ddp", 0.75), (2, "ddp", 0.75)]  # processes, share of the state
MIB = 2**20


class Plan(Training):
    """Two steps of AdamW."""

    kind: Literal["memory.train"] = "memory.train"
    can_shard: ClassVar[bool] = True

    def run(self, ctx: Context) -> Artifact:
        """Only `fit` is measured."""
        raise NotImplementedError


class MeanOutput(Evaluation):
    """Minimises the mean output of the model."""

    kind: Literal["eval.mean_output"] = "eval.mean_output"
    models: list[Ref[Artifact]] = []  # type: ignore[assignment]

    def run(self, ctx: Context) -> Report:
        """Only run during training."""
        raise NotImplementedError

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        """Run the model once."""
        with torch.no_grad():
            return {"mean": float(encoder(torch.ones(1, encoder[0][0].in_features)).mean())}


class Blocks(Task[Tensor]):
    """Equal blocks, whose weights are much larger than their activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(NUM_BLOCKS)])

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Fit the inputs themselves."""
        return F.mse_loss(self.blocks(inputs), inputs), {}

    def encoder(self) -> Any:
        """Give the evaluation the blocks."""
        return self.blocks


@dataclass
class Noise:
    """Random inputs."""

    width: int

    def steps(
        self, start_step: int, num_steps: int, *, rank: int, world_size: int, micro_batch_size: int
    ) -> Iterator[list[Batch[Tensor]]]:
        """Yield the inputs of each step."""
        for step in range(start_step, num_steps):
            inputs = torch.randn(8, self.width, generator=torch.Generator().manual_seed(step))
            yield [Batch(inputs[rank::world_size], [""] * (8 // world_size))]


def train(width: int, parallel: str, folder: Path, limit: float) -> None:
    """Train in this process under the limit, and write its peak."""
    torch.set_num_threads(1)
    runtime = {"device": "cpu", "parallel": parallel, "gather_for_evaluation": parallel != "fsdp"}
    plan = Plan.model_validate(
        {
            "name": "memory", "steps": 2, "global_batch_size": 8, "lr": 1e-3, "ema_decay": 0.9, "runtime": runtime,
            "evaluation": {"tasks": [MeanOutput(name="mean").model_dump()]},
        },
        context={"eval.mean_output": MeanOutput},
    )  # fmt: skip
    ctx = Context("memory", folder / f"part-{os.environ['RANK']}", folder / "work", {}, lambda event: None)
    ctx.directory.mkdir(parents=True)
    before = used("VmRSS")
    resource.setrlimit(resource.RLIMIT_DATA, (int(used("VmData") + limit),) * 2)
    with distributed(TrainingRuntime(device="cpu")):
        with weights_from_first(plan.runtime):
            task = Blocks(width)
        fit(task, Noise(width), plan, ctx)
    (folder / f"peak-{os.environ['RANK']}").write_text(str(used("VmHWM") - before))


def used(kind: str) -> int:
    """Read this process' bytes of a kind of memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024


def measure(width: int, processes: int, parallel: str, share: float, root: Path) -> str:
    """Run a case, and describe it in a row of the table."""
    weights = NUM_BLOCKS * (width + 1) * width * 4
    folder = root / f"{processes}-{parallel}-{share}"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    children = {}
    for rank in range(processes):
        pid = os.fork()
        if not pid:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"MASTER_PORT": port}
            with (folder / f"log-{rank}").open("w") as log:
                os.dup2(log.fileno(), 2)
            code = 1
            try:
                train(width, parallel, folder, share * COPIES * weights)
                code = 0
            except (RuntimeError, MemoryError, SystemExit, Exception) as error:
                (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
            os._exit(code)
        children[pid] = rank
    failed = False
    while children:
        pid, status = os.wait()
        failed |= status != 0
        children.pop(pid)
        for other in children if failed else ():
            os.kill(other, 9)
    errors = " ".join(file.read_text() for file in folder.glob("error-*"))
    memory_error = "allocate" in errors or "MemoryError" in errors
    if failed and not memory_error:
        sys.exit(f"{folder.name}: {errors[:2000]}")
    peaks = [int(file.read_text()) / MIB for file in folder.glob("peak-*")]
    result = "out of memory" if failed else f"trains, peak {max(peaks):.0f} MiB"
    shutil.rmtree(folder)
    state = COPIES * weights / MIB
    return f"| {processes} | {parallel} | {state:.0f} MiB | {state * share:.0f} MiB | {1 / share:.2f} | {result} |"


def main() -> None:
    """Measure all cases, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=3072, help="rows and columns of the matrices")
    parser.add_argument("--page", type=Path, help="file for the table")
    options = parser.parse_args()
    rows = [
        "| processes | parallel | state | limit of a process | state / limit | result |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as root:
        for case in CASES:
            rows.append(measure(options.width, *case, Path(root)))
            print(rows[-1], flush=True)
    if options.page:
        options.page.write_text("\n".join([f"<!-- python {' '.join(sys.argv)} -->", "", *rows]) + "\n")


if __name__ == "__main__":
    main()
