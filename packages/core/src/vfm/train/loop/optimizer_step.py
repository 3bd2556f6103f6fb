"""Compute gradients over micro-batches and processes, clip them, and update the weights if all is finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.profiler import record_function

from vfm.data.loading.batch import Batch, Inputs
from vfm.interfaces import Training
from vfm.train.cost.throughput import Throughput
from vfm.train.loop.curves import MetricsLog
from vfm.train.loop.guard import FiniteGuard
from vfm.train.loop.profiling import waits_reported
from vfm.train.optim.optim import step_if_finite
from vfm.train.optim.precision import Numerics
from vfm.train.optim.state import as_whole, parameters_of
from vfm.train.parallel.dist import seed_everything
from vfm.train.parallel.placement import Alone
from vfm.train.parallel.preparation import Compile
from vfm.train.task import Metrics


@dataclass
class OptimizerStep(Generic[Inputs]):
    """Takes the optimizer steps of a training run. The learning rate must be set before each step."""

    placed: Alone[Inputs]
    plan: Training
    numerics: Numerics
    compiled: Compile
    optimizer: Optimizer
    guard: FiniteGuard
    curves: MetricsLog
    throughput: Throughput
    wait_for_copy: Callable[[], None]  # a checkpoint is copied while the next gradients are computed

    def __call__(self, step: int, micro_batches: Sequence[Batch[Inputs]], wishes: list[float]) -> Tensor:
        """Compute gradients, clip them and step the optimizer.

        Args:
            step: Number of the step, from 0.
            micro_batches: This process' share of the batch.
            wishes: Requests as numbers. They are averaged over the processes in the single all-reduce of the step.

        Returns:
            The mean of each request over all processes.
        """
        losses: list[tuple[list[str], Tensor]] = []
        # Without a gradient, the first backward pass stores its result, where zeros would have to be read and added.
        self.optimizer.zero_grad(set_to_none=True)
        self.placed.task.is_log_step = self.curves.is_last_before_line(step + 1)
        self.placed.task.before_step(step)
        if self.plan.runtime.compile:
            # With CUDA graphs: no output of the last step is read any more.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with waits_reported(self.plan.runtime.sync_debug, self.placed.world.device):
            metrics = self._gradients(step, micro_batches, losses)
        self.placed.average_gradients()
        # The optimizer is about to change the weights that a checkpoint may still be copying.
        self.wait_for_copy()
        with self.numerics.full_weights(), record_function("vfm: optimizer"):
            return self._update(step, metrics, losses, wishes)

    def _update(
        self, step: int, metrics: Metrics, losses: list[tuple[list[str], Tensor]], wishes: list[float]
    ) -> Tensor:
        trained = parameters_of(self.optimizer)
        grads = [param.grad for param in trained if param.grad is not None]
        self.numerics.unscale(grads)
        # With `cpu_offload` the gradients are in host memory.
        grad_norm = as_whole(get_total_norm(grads)).float().to(self.placed.world.device)
        # The norm is needed for the log and the check for infinity anyway, so clipping does not compute it again.
        if self.plan.optimizer.grad_clip_norm:
            clip_grads_with_norm_(trained, self.plan.optimizer.grad_clip_norm, grad_norm)
        names = sorted(metrics)
        local = torch.stack([metrics[name].detach().float() for name in names])
        # `new_full` fills on the device, where `new_tensor` would copy from the host and wait.
        shared = self.placed.world.mean(torch.cat([local, *(local.new_full((1,), wish) for wish in wishes)]))
        values = shared[: len(names)]
        found_inf = self.guard.check(step, [values[names.index("loss")], self.numerics.expected(grad_norm)], losses)
        step_if_finite(self.optimizer, self.numerics.skips(found_inf, grad_norm))
        self.curves.add([*names, "grad_norm"], torch.cat([values, grad_norm[None]]))
        return shared[len(names) :]

    def _gradients(
        self, step: int, micro_batches: Sequence[Batch[Inputs]], losses: list[tuple[list[str], Tensor]]
    ) -> Metrics:
        def reseed(index: int) -> None:
            self.placed.begin_micro_batch(is_last=index == len(micro_batches) - 1)
            seed_everything(self.plan.seed, step, index, self.placed.world.rank)

        def call(
            batch: Batch[Inputs], method: Callable[..., tuple[Tensor, Metrics]] | None = None, /, *args: Any
        ) -> tuple[Tensor, Metrics]:
            with self.numerics.autocast(), record_function("vfm: forward"):
                loss, metrics = self.placed.run(self.compiled(method or self.placed.task), batch.inputs, *args)
            # With the keys, so that a loss that is not finite can be traced to its samples later, without a copy now.
            losses.append((batch.keys, loss.detach()))
            return loss, metrics

        def backward(loss: Tensor) -> None:
            with record_function("vfm: backward"):
                self.numerics.backward(loss)

        with self.throughput.counting():
            return self.placed.task.accumulate(call, micro_batches, backward, reseed)
