"""The training loop for any `Task`, on one or several devices, which resumes bit for bit after a crash."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Generic

import torch
from torch.distributed.tensor import DTensor
from torch.profiler import record_function

from vfm.base import UserError, incidental_settings
from vfm.data.loading.batch import Batch, Inputs
from vfm.interfaces import Context, Preempted, Training
from vfm.train.checkpoint.checkpoint import Checkpoints, Snapshot
from vfm.train.cost.throughput import Throughput
from vfm.train.loop.agreement import Agreement, reading_is_free
from vfm.train.loop.best import BestWeights
from vfm.train.loop.continuation import earlier_snapshot, keep_checkpoints
from vfm.train.loop.curves import MetricsLog
from vfm.train.loop.evaluations import Evaluations
from vfm.train.loop.guard import FiniteGuard, SkippedSamples, check_weights
from vfm.train.loop.memory import memory_explained
from vfm.train.loop.optimizer_step import OptimizerStep
from vfm.train.loop.profiling import StepProfiler
from vfm.train.loop.source import Data
from vfm.train.loop.termination import Termination, termination
from vfm.train.optim.ema import Ema
from vfm.train.optim.optim import build_optimizer, set_lr
from vfm.train.optim.precision import Numerics
from vfm.train.optim.state import as_saved, as_stored, load_model, load_optimizer, model_tensors, optimizer_tensors
from vfm.train.parallel.dist import DistributedWorld, distributed, micro_batch_size, reproducible, tf32
from vfm.train.parallel.float8 import float8_products
from vfm.train.parallel.heartbeat import watched
from vfm.train.parallel.kernels import chosen_kernels
from vfm.train.parallel.parallel import in_processes
from vfm.train.parallel.placement import Alone
from vfm.train.parallel.preparation import Compile, prepared, uncompiled
from vfm.train.parallel.progress import Phase, Position
from vfm.train.task import Task

PATIENCE = 60.0  # seconds to wait after an error for the checkpoint that is being written


def fit(task: Task[Inputs], data: Data[Inputs], config: Training, ctx: Context) -> None:
    """Train a task in place. An interrupted training resumes from its newest checkpoint.

    With `ema_decay`, the task has the averaged weights afterwards. With `keep_best`, it has the weights with the
    highest score, in rank 0.

    Args:
        task: Computes the loss.
        data: Yields the batches of each step.
        config: Settings of the training.
        ctx: Context of the stage. `metrics.jsonl` and panels are written into `ctx.directory`, checkpoints into
            `ctx.work`. A stage that trains twice must use a separate folder for each run.

    Raises:
        UserError: If the configuration does not fit the processes, a loss or a trained weight is not finite, or too
            many samples cannot be read.
        OSError: If a file cannot be written, for example because the disk is full. Earlier checkpoints are complete.
        Preempted: If the process received SIGTERM or SIGUSR1. A checkpoint has then been saved.
    """
    with distributed(config.runtime) as world, tf32(world.device), reproducible(world.device), termination() as stop:
        _fit(task, data, config, ctx, world, stop)


def _fit(
    task: Task[Inputs], data: Data[Inputs], config: Training, ctx: Context, world: DistributedWorld, stop: Termination
) -> None:
    # The order matters: fused kernels and FP8 replace layers, compilation records the layers that it finds, and DDP and
    # FSDP wrap the result, whose parameters are then fixed for the optimizer.
    placed = in_processes(task, config.runtime, world)
    position = Position()
    with (
        chosen_kernels(placed.task, config.runtime, ctx, world),
        float8_products(placed.task, ctx, world) if config.precision == "amp_fp8" else nullcontext(),
        prepared(placed.task, config.runtime, ctx, world) as compiled,
        watched(world, partial(_end, ctx), position, config.runtime.hang_seconds, ctx.work),
    ):
        steps_only = [held.module for held in placed.task.frozen() if held.steps_only]
        numerics = Numerics(config.precision, placed.task, world.device, steps_only)
        # On the CPU, a layer norm of fp32 inputs cannot have bf16 weights. On CUDA devices autocast makes them fp32.
        placed.wrap(numerics.half if world.device.type == "cuda" else None)
        _Loop(placed, data, config, ctx, stop, numerics, compiled, position).run()


def _end(ctx: Context, message: str) -> None:
    """Report why this process is about to end."""
    ctx.emit("run_failed", message=f"{ctx.stage}: {message}; the next run resumes from the last checkpoint")


class _Loop(Generic[Inputs]):
    def __init__(
        self,
        placed: Alone[Inputs],
        data: Data[Inputs],
        plan: Training,
        ctx: Context,
        stop: Termination,
        numerics: Numerics,
        compiled: Compile,
        position: Position,
    ) -> None:
        self.numerics = numerics
        self.position = position
        self.placed = placed
        self.data = data
        self.plan = plan
        self.ctx = ctx
        self.stop = stop
        self.task, self.world = task, world = placed.task, placed.world
        self.micro_batch_size = micro_batch_size(plan, world)
        ctx.work.mkdir(parents=True, exist_ok=True)
        task.train()
        self.optimizer = build_optimizer(task, plan.optimizer, plan.lr)
        self.lr_at: Callable[[int], float] = plan.schedule.build(plan.lr, plan.num_steps)
        with numerics.full_weights():
            # An average in bf16 would lose every change below 1/256 of a weight, which at usual decays is nearly all of
            # them.
            self.ema = Ema(task, plan.ema_decay) if plan.ema_decay else None
        self.throughput = Throughput(world.device, plan.runtime, half=numerics.half is not None)
        self.curves = MetricsLog(ctx, plan, world, self.throughput)
        self.evaluations = Evaluations(plan, ctx)
        self.best = BestWeights(plan, ctx)
        self.agreement = Agreement()
        self.guard = FiniteGuard(ctx, world)
        self.skipped = SkippedSamples(ctx, plan, world)
        sharded = {name: value for name, value in model_tensors(task).items() if isinstance(value, DTensor)}
        self.checkpoints = Checkpoints(ctx.work, plan.checkpoint, ctx.warn, world, sharded)
        with numerics.full_weights():
            self.done = self.first_step = self._resume()
        self.optimize = OptimizerStep(
            placed, plan, numerics, compiled, self.optimizer, self.guard, self.curves, self.throughput,
            self.checkpoints.wait_for_copy,
        )  # fmt: skip
        self.profiler = StepProfiler(plan.runtime, ctx, world, self.done)
        ctx.emit("settings", step=self.done, settings=incidental_settings(plan))

    def run(self) -> None:
        """Run all remaining steps."""
        # The initial weights may be the best. This also lets a missing metric fail early.
        if self.best.metric and not self.best.scores:
            self._evaluate()
        rank = self.world.rank
        world_size = self.world.size
        batches = self.data.steps(
            self.done, self.plan.num_steps, rank=rank, world_size=world_size, micro_batch_size=self.micro_batch_size
        )
        steps = iter(batches)
        try:
            with memory_explained(self, self.plan, self.ctx, self.world):
                while self.done < self.plan.num_steps:
                    self.profiler.before(self.done + 1)
                    self._advance(self._next(steps))
                    self.profiler.after(self.done)
            self.checkpoints.wait()
        except BaseException:
            with suppress(BaseException):  # the first error is the one to report
                self.checkpoints.wait(PATIENCE)
            raise
        finally:
            self.profiler.close()
            # Closing a generator ends its worker processes and threads now, not when it is collected.
            if hasattr(steps, "close"):
                steps.close()
        self.position.move(self.done, Phase.SAVING)
        self.numerics.end()
        if self.ema:
            self.ema.copy_to_weights()
        self._free()
        task = self.placed.finish()
        if self.world.is_main:
            self.best.restore_best(task)
            self.curves.finish()
            keep_checkpoints(self.checkpoints, self.ctx.directory, self.done)
        check_weights(task, self.ctx.stage, self.world)
        self._wait_for_others()

    def _next(self, steps: Iterator[list[Batch[Inputs]]]) -> list[Batch[Inputs]]:
        self.position.move(self.done + 1, Phase.READING)
        started = time.perf_counter()
        with record_function("vfm: read"):
            micro_batches = next(steps, None)
        self.curves.waited += time.perf_counter() - started
        if micro_batches is None:
            raise UserError(f"{self.ctx.stage}: the data ends after step {self.done} of {self.plan.num_steps}")
        self.curves.count(micro_batches)
        self.skipped.take(micro_batches)
        # On the host, since cutting padding needs lengths, which would have to be read back from the device.
        ready = [replace(batch, inputs=self.task.prepare(batch.inputs)) for batch in micro_batches]
        return [batch.to(self.world.device) for batch in ready]

    def _advance(self, micro_batches: Sequence[Batch[Inputs]]) -> None:
        """Take one optimizer step, and log, evaluate, save and stop when due.

        The host synchronises with the device only every `log_every` steps, when a checkpoint is due, and on the CPU,
        where it costs nothing. All processes must agree on whether to stop (after a signal) and whether a checkpoint is
        due by time, so each adds its request to the single all-reduce of the step, whose result is read a step later.
        """
        alone = self.world.size == 1
        wishes = [float(self.stop.is_set()), float(self.checkpoints.due_by_time() and self.world.is_main)]
        step = self.done
        done = self.done + 1
        compiles = self.plan.runtime.compile is not None and step == self.first_step
        self.position.move(done, Phase.STARTING if compiles else Phase.COMPUTING)
        log = self.curves.due(done)
        save = done == self.plan.num_steps or self.checkpoints.due_by_step(done)
        evaluate = self.evaluations.due(done)
        # Wait for the device only in steps that read from it anyway.
        look = log or save or evaluate or reading_is_free(self.world.device) or (alone and any(wishes))
        lr = self.lr_at(step)
        set_lr(self.optimizer, lr, step)
        # A skipped step computes nothing, but the other processes rely on its all-reduce for their requests.
        if done in self.plan.skip_steps:
            self.checkpoints.wait_for_copy()
            agreed = self.world.mean(torch.tensor(wishes, device=self.world.device))
        else:
            agreed = self.optimize(step, micro_batches, wishes)
        stop, due = self.agreement.after_step(agreed, wait=look)
        # Before anything is logged, scored or saved, so that no file contains a step that was not finite.
        if look or stop or due:
            self.guard.read(self.checkpoints.wait)
        with self.numerics.full_weights():
            self.task.after_step()
            if self.ema:
                self.ema.update(step)
        self.done = done
        if log:
            self.curves.write(done, lr, self.checkpoints.pauses.take())
        if evaluate:
            self._evaluate()
        save = save or stop or due
        if log or save:
            self.skipped.report(done, self.curves.samples)
        if save:
            with self.numerics.full_weights():
                self._save()
        if stop and done < self.plan.num_steps:
            self.checkpoints.wait()
            self._wait_for_others()  # the launcher ends all processes when the first one exits
            name = signal.Signals(self.stop.number).name
            message = f"{self.ctx.stage}: stopped by {name} after step {done}; the next run resumes from there"
            raise Preempted(message, self.stop.number)

    def _evaluate(self) -> None:
        """Run the evaluations in all processes, on the averaged weights if there are any. Only rank 0 has scores."""
        self.position.move(self.done, Phase.EVALUATING)
        averaged = self.ema.as_weights() if self.ema else nullcontext()
        with self.numerics.full_weights(), averaged, self.placed.whole() as task, uncompiled(self.plan.runtime):
            task.eval()
            logged: dict[str, float] = {}
            for evaluation, scores in self.evaluations.run(task.encoder(), self.world, shared=self.placed.gathers):
                logged |= self.curves.write_scores(self.done, evaluation, scores)
            if self.world.is_main:
                self.best.offer(self.done, logged, task)
            task.train()
        self._wait_for_others()
        self.curves.restart_clock()

    def _free(self) -> None:
        """Free the memory that only steps need, and a sharded model's gradients, before the whole model is gathered."""
        self.optimizer.state.clear()
        self.ema = None

    def _wait_for_others(self) -> None:
        self.position.move(self.done, Phase.WAITING)
        self.world.barrier()

    def _save(self) -> None:
        self.position.move(self.done, Phase.SAVING)
        # The next forward pass may change buffers while the thread still copies.
        buffers = dict(self.task.named_buffers())
        model = model_tensors(self.task)
        tensors = {
            "model": {name: value.clone() if name in buffers else value for name, value in model.items()},
            "optimizer": optimizer_tensors(self.optimizer, self.task),
        }
        if self.ema:
            tensors["ema"] = as_saved(self.task, self.ema.average)
        if self.best.tensors:
            tensors["best"] = self.best.tensors
        facts = {
            "curves": self.curves.state(),
            "skipped": self.skipped.state(),
            "best": self.best.state(),
            "optimizer": self.plan.optimizer.algorithm_name,
            **self.numerics.state(),
            **self.throughput.state(self.world.size),
        }
        is_last = self.done == self.plan.num_steps
        self.checkpoints.save(Snapshot(self.done, tensors, facts, self.curves.file, is_last=is_last))

    def _resume(self) -> int:
        snapshot = self.checkpoints.latest()
        verb = "resumes"
        if snapshot is None:
            snapshot = earlier_snapshot(self.plan, self.ctx, self.checkpoints)
            verb = "continues"
        if snapshot is None:
            self.curves.restore(None)
            return 0
        load_model(self.task, snapshot.tensors["model"], f"{self.ctx.stage}: {snapshot.folder}")
        load_optimizer(self.optimizer, self.task, snapshot.tensors["optimizer"])
        if self.ema:
            self.ema.load(as_stored(self.task, snapshot.tensors["ema"]))
        self.numerics.restore(snapshot.facts)
        self.curves.restore(snapshot.facts["curves"], snapshot.step)
        self.skipped.restore(snapshot.facts["skipped"])
        self.best.restore(snapshot.facts["best"], snapshot.tensors.get("best", {}))
        if verb == "resumes":  # another training may have other batches
            self.throughput.restore(snapshot.facts, self.world.size)
        if self.world.is_main:
            self.ctx.log(f"{verb} after step {snapshot.step} of {self.plan.num_steps}")
        return snapshot.step
