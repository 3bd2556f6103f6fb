"""Measure CPU seconds of a step with tiny models: the plain loop, ours in the first epoch, ours with cached latents."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from counted import plain_of
from parts import TOY, Parts, build
from torch import nn

from vfm_diva.generator.inputs import TuneInputs
from vfm_diva.tune.tune_task import TuneTask

WARM_UP = 1  # rounds before the measurement


class Ours:
    """Takes steps of a task as the training loop does, without reading data and saving checkpoints."""

    def __init__(self, task: TuneTask, *, cached: bool) -> None:
        self.task, self.cached = task, cached
        self.params = [param for param in task.parameters() if param.requires_grad]
        self.optimizer = torch.optim.SGD(self.params, lr=1e-4, momentum=0.9)

    def step(self, inputs: TuneInputs) -> float:
        """Take an optimizer step, and return the loss."""
        unused = {"target_images": None} if self.cached else {"target_latents": None}
        loss, _ = self.task(replace(inputs, **unused))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def timed(*, rounds: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Measure median seconds over rounds. In each round every variant takes a step on the same batch."""
    parts = build(TOY, "cpu")
    task = parts.task()
    assert task.conditioner.adapter is not None
    adapter = copy.deepcopy(task.conditioner.adapter.tokens)
    plain_parts = Parts(*(copy.deepcopy(part) for part in (parts.clip, parts.generator, parts.text, parts.prompt)))
    variants: dict[str, Callable[[TuneInputs], float]] = {
        "plain loop": plain_of(plain_parts, adapter).step,
        "first epoch": Ours(copy.deepcopy(task), cached=False).step,
        "later epochs, cached latents": Ours(copy.deepcopy(task), cached=True).step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(WARM_UP + rounds):
        inputs = parts.inputs(batch_size, seed=number)
        inputs = replace(inputs, target_latents=parts.generator.space(inputs.target_images))
        for name, step in variants.items():
            start = time.process_time()
            losses[name].append(step(inputs))
            seconds[name].append(time.process_time() - start)
    found = {}
    for name, values in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds["plain loop"][WARM_UP:], values[WARM_UP:], strict=True)]
        apart = [abs(one - other) for one, other in zip(losses["plain loop"], losses[name], strict=True)]
        found[name] = {
            "ms a step": 1e3 * statistics.median(values[WARM_UP:]),
            "times as fast": statistics.median(ratios),
            "loss difference": max(apart),
        }
    return found
