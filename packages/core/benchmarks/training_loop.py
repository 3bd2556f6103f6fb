"""What the training loop adds to a step, and how long a checkpoint holds it up.

    python packages/core/benchmarks/training_loop.py --rounds 5

A residual network of linear layers is trained by `fit`, and by a bare loop with the same model, batches, fused AdamW,
clipping and averaging of metrics. Both take turns on the same machine; times are the processor's of this process, so
other processes matter less, and the loops are interleaved. A checkpoint's pause is what the step that saves and the
next one, which waits for the copy before it changes the weights, take longer than two others, by the clock: it needs a
second core that is idle.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm.data import Batch
from vfm.plugin import Artifact, Context, Training
from vfm.train import Task, fit


class Plan(Training):
    kind: Literal["bench.train"] = "bench.train"
    name: str = "bench"

    def run(self, ctx: Context) -> Artifact:
        raise NotImplementedError


@dataclass(frozen=True)
class Rows:
    x: Tensor


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.into(self.norm(x))))


class Reconstruction(Task[Rows]):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, inputs: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        return F.mse_loss(self.net(inputs.x), inputs.x.flip(1)), {}


@dataclass
class Fixed:
    """Data with the same batch in every step; `moments` records the process and wall-clock seconds before each step."""

    batch: Batch[Rows]
    moments: list[tuple[float, float]]

    def steps(self, start_step: int, num_steps: int, **where: Any) -> Iterator[list[Batch[Rows]]]:
        for _ in range(start_step, num_steps):
            self.moments.append((time.process_time(), time.perf_counter()))
            yield [self.batch]
        self.moments.append((time.process_time(), time.perf_counter()))


def fitted(task: Reconstruction, batch: Batch[Rows], steps: int, every: int | None = None) -> list[tuple[float, float]]:
    """Return the seconds of the process and of the clock in each step of `fit`."""
    policy = {"every_steps": every} if every else {"every_minutes": 1e6}
    with tempfile.TemporaryDirectory() as name:
        plan = Plan(
            steps=steps, global_batch_size=len(batch), log_every=10, checkpoint=policy, precision="fp32",
            optimizer={"grad_clip_norm": 1.0}, runtime={"device": "cpu", "threads": 1},
        )  # fmt: skip
        data = Fixed(batch, [])
        fit(task, data, plan, Context("bench", Path(name) / "part", Path(name) / "work", {}))
    return differences(data.moments)


def bare(task: Reconstruction, batch: Batch[Rows], steps: int) -> list[tuple[float, float]]:
    """Return the same of a loop that does only what any training does."""
    weights = [param for param in task.parameters() if param.ndim > 1]
    vectors = [param for param in task.parameters() if param.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    total, moments = torch.zeros(()), []
    for step in range(steps):
        moments.append((time.process_time(), time.perf_counter()))
        optimizer.zero_grad(set_to_none=True)
        loss, _ = task(batch.inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.detach()
        if step % 10 == 9:
            total.item()
    moments.append((time.process_time(), time.perf_counter()))
    return differences(moments)


def differences(moments: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(moments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    batch = Batch(Rows(torch.randn(given.batch, given.width)), [str(i) for i in range(given.batch)])
    skipped = 3  # first steps: allocation, and the count of operations
    ours, theirs = [], []
    for number in range(given.rounds):
        turns = [(ours, fitted), (theirs, bare)]
        for seconds, loop in turns if number % 2 else turns[::-1]:
            timed = loop(Reconstruction(given.width, given.depth), batch, given.steps)
            seconds.append(statistics.median(cpu for cpu, _ in timed[skipped:]))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"a step takes {1e3 * statistics.median(ours):.1f} ms of the processor in fit,"
        f" {1e3 * statistics.median(theirs):.1f} ms in a bare loop"
    )
    print(f"ratio {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})")
    every = 10
    timed = fitted(Reconstruction(given.width, given.depth), batch, 6 * every, every=every)
    clock = [seconds for _, seconds in timed]
    plain = statistics.median(seconds for step, seconds in enumerate(clock, 1) if step % every > 4)
    pause = statistics.median(clock[last - 1] + clock[last] - 2 * plain for last in range(every, len(clock), every))
    parameters = sum(param.numel() for param in Reconstruction(given.width, given.depth).parameters())
    print(
        f"a checkpoint of {parameters / 1e6:.1f} M parameters holds a step of {1e3 * plain:.0f} ms"
        f" up for {1e3 * pause:.1f} ms, {100 * pause / plain:.1f} %"
    )


if __name__ == "__main__":
    main()
