"""The cost of a training, computed on tensors without contents: one optimizer step is run, and nothing is allocated.

The numbers are those of plain torch: attention is fused, kernels of `vfm_kernels` and `torch.compile` are not in them.
Not counted is what other processes send (features of a contrastive loss, FSDP's gathered blocks) and what an allocator
or CUDA itself keeps.
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

DEVICE = "cpu"  # contentless there too; the optimizer's kernels need another one than meta


def estimate_training(
    task: Task[Any], make_inputs: Callable[[int], Any], config: Training, *, selected: float = 1.0
) -> Cost:
    """Return the cost of a training.

    Args:
        task: on the meta device; it cannot be used afterwards.
        make_inputs: returns inputs for a number of samples, as the task gets them; their contents do not matter.
        config: of the training.
        selected: share of the elements that a mask as an index selects.
    """
    share = max(1, config.global_batch_size // config.runtime.processes)
    micro = min(config.micro_batch_size or share, share)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with contentless(selected):
            return _Step(task.to_empty(device=DEVICE).train(), config).cost(
                make_inputs(micro), micro, -(-share // micro)
            )
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


class _Step:
    def __init__(self, task: Task[Any], config: Training) -> None:
        self.task, self.config = task, config
        self.bytes = LiveBytes()

    def cost(self, inputs: Any, micro: int, number: int) -> Cost:
        task, config, counter = self.task, self.config, self.bytes
        held = [*task.parameters(), *task.buffers()]
        for frozen in task.frozen():
            held += [*frozen.module.parameters(), *frozen.module.buffers()]
        weights = counter.hold(held)
        trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
        with counter:
            optimizer = build_optimizer(task, config.optimizer, config.lr)
            state = _state_bytes(optimizer, trained)
            if number == 1:  # else the gradients of the earlier micro-batches are there
                optimizer.zero_grad(set_to_none=True)
            before = counter.now
            average = Ema(task, config.ema_decay) if config.ema_decay else None
            averaged = counter.now - before
            counter.peak, counter.flops = counter.now, 0
            batches = [Batch(inputs, [""] * micro)] * number
            runs = _Runs(task, config, counter)
            task.before_step(0)
            task.accumulate(runs.call, batches, runs.backward, lambda index: None)
            flops = runs.flops
            optimizer.step()
        assert average is None or average.average
        gradients = sum(parameter.nbytes for parameter in trained)
        fixed = weights + gradients + state + averaged
        shards = (config.runtime.shard_degree or config.runtime.processes) if config.runtime.parallel == "fsdp" else 1
        memory = PeakMemory(
            weights // shards, gradients // shards, state // shards, averaged // shards, max(0, counter.peak - fixed)
        )
        numbers = {id(parameter): parameter.numel() for parameter in held if isinstance(parameter, torch.nn.Parameter)}
        own = sum(parameter.nbytes for parameter in task.parameters()) + averaged
        policy = config.checkpoint
        # While the newest is written, the oldest is still there.
        kept = policy.keep_last + 1 + (config.num_steps // policy.keep_every if policy.keep_every else 0)
        best = weights if config.evaluation.keep_best else 0
        return Cost(
            parameters=sum(numbers.values()),
            trained=sum(parameter.numel() for parameter in trained),
            memory=memory,
            flops=float(flops) * config.num_steps * config.runtime.processes,
            disk=own + kept * (own + state + best),
        )


@dataclass
class _Runs:
    """Runs a task's methods on one micro-batch of a step, and repeats the results for the others."""

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
        """Return the method's results; a repeated loss takes no gradient."""
        name = getattr(method, "__name__", "forward")
        if name in self.done:
            loss, metrics, flops = self.done[name]
            self.flops += flops
            return loss.clone(), {key: value.clone() for key, value in metrics.items()}
        before = self.counter.flops
        precision = self.config.precision
        if precision == "auto":  # as on a CUDA device, unless the device is the CPU
            precision = "fp32" if self.config.runtime.device == "cpu" else "amp_bf16"
        with torch.autocast("cpu", dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss, metrics = (method or self.task)(batch.inputs, *args)
        flops = self.counter.flops - before
        self.flops += flops
        self.done[name] = loss.detach(), {key: value.detach() for key, value in metrics.items()}, flops
        return loss, metrics

    def backward(self, loss: Tensor) -> None:
        """Compute a loss' gradients; a repeated one counts as often as it would be computed."""
        before = self.counter.flops
        if loss.requires_grad:
            torch.autograd.backward(loss)
            self.last_backward = self.counter.flops - before
        self.flops += self.last_backward


def _state_bytes(optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter]) -> int:
    """Let the optimizer make its state by one step, and leave the gradients; return the bytes of the state."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
