"""Seconds of a step at a toy's size on a processor: the plain loop, ours in a first epoch, ours from kept latents."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from counted import plain_of
from parts import TOY, Parts, build
from torch import nn

from vfm_diva.tune_task import TuneTask

WARM_UP = 1  # rounds that are not counted


class Ours:
    """Steps of a task as the training loop takes them, without reading data and keeping checkpoints."""

    def __init__(self, task: TuneTask, *, kept: bool) -> None:
        self.task, self.kept = task, kept
        self.params = [param for param in task.parameters() if param.requires_grad]
        self.optimizer = torch.optim.SGD(self.params, lr=1e-4, momentum=0.9)

    def step(self, batch: dict[str, Any]) -> float:
        """One optimiser step; gives the loss."""
        loss, _ = self.task({name: batch[name] for name in batch if name != ("pictures" if self.kept else "latents")})
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def timed(*, rounds: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Medians over rounds, in each of which every way takes a step on the same batch; this process' seconds."""
    parts = build(TOY, "cpu")
    task = parts.task()
    assert task.conditioner.adapter is not None
    adapter = copy.deepcopy(task.conditioner.adapter.tokens)
    plain_parts = Parts(*(copy.deepcopy(part) for part in (parts.clip, parts.generator, parts.text, parts.prompt)))
    ways: dict[str, Callable[[dict[str, Any]], float]] = {
        "plain loop": plain_of(plain_parts, adapter).step,
        "first epoch": Ours(copy.deepcopy(task), kept=False).step,
        "later epochs, kept latents": Ours(copy.deepcopy(task), kept=True).step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + rounds):
        batch = parts.batch(batch_size, seed=number)
        batch["latents"] = parts.generator.space(batch["pictures"])
        for name, way in ways.items():
            start = time.process_time()
            losses[name].append(way(batch))
            seconds[name].append(time.process_time() - start)
    found = {}
    for name, values in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds["plain loop"][WARM_UP:], values[WARM_UP:], strict=True)]
        apart = [abs(one - other) for one, other in zip(losses["plain loop"], losses[name], strict=True)]
        found[name] = {
            "ms a step": 1e3 * statistics.median(values[WARM_UP:]),
            "times as fast": statistics.median(ratios),
            "losses apart, most": max(apart),
        }
    return found
