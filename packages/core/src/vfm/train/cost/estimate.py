"""The cost of a training run, estimated by one optimizer step on tensors without contents, which allocates nothing.

The numbers are for plain torch with fused attention, without the kernels of `vfm_kernels` and without `torch.compile`.
Tensors from other processes (features of a contrastive loss, FSDP's gathered blocks) and memory held by the allocator
or by CUDA are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vfm.data.loading.batch import Batch
from vfm.interfaces import Cost, PeakMemory, Training
from vfm.train.cost.contentless import contentless
from vfm.train.cost.live_bytes import LiveBytes
from vfm.train.optim.ema import Ema
from vfm.train.optim.optim import build_optimizer
from vfm.train.optim.precision import AUTOCAST
from vfm.train.task import Metrics, Task
from vfm.train.trained import trained_parameters

DEVICE = "cpu"  # contentless too, but unlike `meta` it has the fused optimizer kernels


def estimate_training(
    task: Task[Any], make_inputs: Callable[[int], Any], config: Training, *, selected: float = 1.0
) -> Cost:
    """Estimate the cost of a training run.

    Args:
        task: Task on the meta device. It cannot be used afterwards.
        make_inputs: Creates the inputs of the task for a number of samples. Their contents do not matter.
        config: Configuration of the training.
        selected: Share of the elements that a mask selects if it is used as an index.
    """
    share = max(1, config.global_batch_size // config.runtime.processes)
    micro = min(config.micro_batch_size or share, share)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with contentless(selected):
            step = _Step(task.to_empty(device=DEVICE).train(), config)
            return step.cost(make_inputs(micro), micro, -(-share // micro))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


class _Step:
    def __init__(self, task: Task[Any], config: Training) -> None:
        self.task = task
        self.config = config
        self.bytes = LiveBytes()

    def cost(self, inputs: Any, micro: int, number: int) -> Cost:
        task = self.task
        config = self.config
        counter = self.bytes
        held = [*task.parameters(), *task.buffers()]
        for frozen in task.frozen():
            held += [*frozen.module.parameters(), *frozen.module.buffers()]
        weights = counter.hold(held)
        trained = trained_parameters(task)
        with counter:
            optimizer = build_optimizer(task, config.optimizer, config.lr)
            state = _state_bytes(optimizer, trained)
            if number == 1:  # with several micro-batches, the earlier gradients are in memory
                optimizer.zero_grad(set_to_none=True)
            before = counter.now
            average = Ema(task, config.ema_decay) if config.ema_decay else None
            averaged = counter.now - before
            counter.peak = counter.now
            counter.flops = 0
            batches = [Batch(inputs, [""] * micro)] * number
            runs = _Runs(task, config, counter)
            task.before_step(0)
            task.accumulate(runs.call, batches, runs.backward, lambda index: None)
            flops = runs.flops
            optimizer.step()
        assert average is None or average.average
        gradients = 0
        num_trained = 0
        for parameter in trained:
            gradients += parameter.nbytes
            num_trained += parameter.numel()
        fixed = weights + gradients + state + averaged
        shards = 1
        if config.runtime.parallel == "fsdp":
            shards = config.runtime.shard_degree or config.runtime.processes
        memory = PeakMemory(
            weights // shards, gradients // shards, state // shards, averaged // shards, max(0, counter.peak - fixed)
        )
        numbers = {id(parameter): parameter.numel() for parameter in held if isinstance(parameter, torch.nn.Parameter)}
        saved = sum(parameter.nbytes for parameter in task.parameters()) + averaged
        policy = config.checkpoint
        # While the newest checkpoint is written, the oldest one still exists.
        num_checkpoints = policy.keep_last + 1
        if policy.keep_every:
            num_checkpoints += config.num_steps // policy.keep_every
        best = weights if config.evaluation.keep_best else 0
        return Cost(
            parameters=sum(numbers.values()),
            trained=num_trained,
            memory=memory,
            flops=float(flops) * config.num_steps * config.runtime.processes,
            disk=saved + num_checkpoints * (saved + state + best),
        )


@dataclass
class _Runs:
    """Runs the methods of a task on one micro-batch of a step, and repeats the results for the others."""

    task: Task[Any]
    config: Training
    counter: LiveBytes
    flops: int = 0

    def __post_init__(self) -> None:
        self.done: dict[str, tuple[Tensor, Metrics, int]] = {}  # loss, metrics and operations of each method
        self.last_backward = 0

    def call(
        self, batch: Batch[Any], method: Callable[..., tuple[Tensor, Metrics]] | None = None, /, *args: Any
    ) -> tuple[Tensor, Metrics]:
        """Run a method, or repeat its results. A repeated loss takes no gradient."""
        name = getattr(method, "__name__", "forward")
        if name in self.done:
            loss, metrics, flops = self.done[name]
            self.flops += flops
            return loss.clone(), {key: value.clone() for key, value in metrics.items()}
        before = self.counter.flops
        precision = self.config.precision
        if precision == "auto":  # estimate for a CUDA device, unless the CPU is configured
            precision = "fp32" if self.config.runtime.device == "cpu" else "amp_bf16"
        with torch.autocast("cpu", dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss, metrics = (method or self.task)(batch.inputs, *args)
        flops = self.counter.flops - before
        self.flops += flops
        self.done[name] = loss.detach(), {key: value.detach() for key, value in metrics.items()}, flops
        return loss, metrics

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss. A repeated loss counts as often as it would be computed."""
        before = self.counter.flops
        if loss.requires_grad:
            torch.autograd.backward(loss)
            self.last_backward = self.counter.flops - before
        self.flops += self.last_backward


def _state_bytes(optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter]) -> int:
    """Measure the bytes of the optimizer's state by taking one step. The gradients stay in memory."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    total = 0
    for state in optimizer.state.values():
        for value in filter(torch.is_tensor, state.values()):
            total += value.nbytes
    return total
