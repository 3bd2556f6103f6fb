"""Stop a training run at a loss or gradient that is not finite, or after too many unreadable samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vfm.base import UserError
from vfm.data.indexing.indexing import most_common
from vfm.data.loading.batch import Batch
from vfm.interfaces import Context, Training
from vfm.statistics import wilson_interval
from vfm.train.checkpoint.checkpoint_folders import checkpoints_in
from vfm.train.parallel.dist import DistributedWorld

NAMED = 8  # samples that a message names; the others are listed in a file
REMEMBERED = 10_000  # bad samples, about 1 MB in a checkpoint


class FiniteGuard:
    """Keeps NaN and infinity out of the weights without synchronising with the device.

    `found_inf` is passed to the fused optimizer. If it is 1, weights and state stay unchanged. It stays 1 from the
    first step that is not finite, so whenever the host reads the flag, the weights are the last good ones.
    """

    def __init__(self, ctx: Context, world: DistributedWorld) -> None:
        self.ctx = ctx
        self.world = world
        self.found_inf = torch.zeros((), device=world.device)
        self.first = torch.full((), -1, dtype=torch.long, device=world.device)
        self.unread: dict[int, list[tuple[list[str], Tensor]]] = {}

    def check(self, step: int, values: Sequence[Tensor], losses: list[tuple[list[str], Tensor]]) -> Tensor:
        """Update the flag for the optimizer.

        Args:
            step: Number of the step.
            values: Tensors that must be finite.
            losses: (keys, loss) of each micro-batch, by which the samples are identified later.
        """
        finite = torch.stack(list(map(torch.isfinite, values))).all()
        # Computed on the device, where a condition in Python would wait for it.
        self.first = torch.where((self.found_inf == 0) & ~finite, torch.full_like(self.first, step), self.first)
        self.found_inf = torch.maximum(self.found_inf, (~finite).float())
        self.unread[step] = losses
        return self.found_inf

    def read(self, settle: Callable[[], None] = lambda: None) -> None:
        """Read the flag. This synchronises with the device.

        Args:
            settle: Waits until the newest checkpoint is written, so that the error can name it.

        Raises:
            UserError: If a step since the last call was not finite. It and later steps were not taken.
        """
        step = int(self.first)
        if step < 0:
            self.unread.clear()
            return
        settle()
        losses: dict[tuple[str, ...], Tensor] = {}
        for names, loss in self.unread[step]:  # a replayed micro-batch comes twice, and only its first loss is real
            losses.setdefault(tuple(names), loss)
        with_bad_loss: list[str] = []
        every: list[str] = []
        for batch_keys, loss in losses.items():
            every += batch_keys
            if not torch.isfinite(loss):
                with_bad_loss += batch_keys
        by_rank = self.world.gather((with_bad_loss, every))
        # With finite losses it is the gradient that overflowed, which may be due to any sample of the step.
        keys_with_bad_loss, all_keys = zip(*by_rank, strict=True)
        is_bad_loss = any(keys_with_bad_loss)
        what = "the loss" if is_bad_loss else "the gradient"
        suspects = keys_with_bad_loss if is_bad_loss else all_keys
        keys = list(dict.fromkeys(chain.from_iterable(suspects)))
        where = ", ".join(keys[:NAMED])
        if len(keys) > NAMED:
            file = self.ctx.work / f"not-finite-{step + 1:08d}.json"
            where += f" and {len(keys) - NAMED} more, listed in {file}"
            if self.world.is_main:
                file.write_text(json.dumps({"step": step + 1, "keys": keys}) + "\n", encoding="utf-8")
        raise UserError(
            f"{self.ctx.stage}: {what} is not finite at step {step + 1}; the step was not taken, the weights are"
            f" those of step {step}; {self._advice(step + 1)}; samples: {where}"
        )

    def _advice(self, step: int) -> str:
        """Suggest remedies for a step, counted from 1. The same command would stop there again."""
        skip = f"skip_steps: [{step}] leaves this step out"
        saved = checkpoints_in(self.ctx.work)
        if saved:
            again = f", and continue_from: {{training: {saved[-1]}}} goes on from there"
        else:
            again = ""
        return f"a lower lr or optimizer.grad_clip_norm may help, {skip}{again}"


def check_weights(task: nn.Module, stage: str, world: DistributedWorld) -> None:
    """Check that the trained weights of rank 0 are finite before they are exported.

    All processes call it together. A step that is not finite is never taken (`FiniteGuard`), but a finite step or an
    average can overflow a weight.

    Args:
        task: Task with the weights.
        stage: Name of the stage, for the error.
        world: This process.

    Raises:
        UserError: If a weight is NaN or infinite.
    """
    problem, *_ = world.gather(_not_finite(task) if world.is_main else "")
    if problem:
        raise UserError(f"{stage}: {problem}; a lower lr or optimizer.grad_clip_norm may help")


def _not_finite(task: nn.Module) -> str:
    names = []
    finite = []
    for name, value in task.state_dict().items():
        if value.is_floating_point():
            names.append(name)
            finite.append(value.isfinite().all())
    if not names:
        return ""
    flags = torch.stack(finite).tolist()  # one read for all tensors, as each would wait for the device
    wrong = [name for name, is_finite in zip(names, flags, strict=True) if not is_finite]
    if not wrong:
        return ""
    return (
        f"{len(wrong)} of {len(names)} trained tensors contain NaN or infinity, the first is {wrong[0]}; they are not"
        " exported"
    )


class SkippedSamples:
    """Counts the samples that could not be read in any process, and stops the training if there are too many.

    A sample is reported once, however often it is read. The tolerated fraction is a fraction of all reads. The first
    `REMEMBERED` bad samples are remembered, in memory and in checkpoints. For the others, each read counts as a sample.
    """

    def __init__(self, ctx: Context, plan: Training, world: DistributedWorld) -> None:
        self.ctx = ctx
        self.plan = plan
        self.world = world
        self.before = 0  # samples read by the run that this one continues
        self.reads = 0  # failed reads
        self.counts = Counter[str]()  # number of samples by reason
        self.samples: dict[tuple[str, str], None] = {}  # (reason, where) in the order of their first reads
        self.pending: list[tuple[str, str]] = []

    def take(self, micro_batches: Sequence[Batch[Any]]) -> None:
        """Add the bad samples of a step."""
        for batch in micro_batches:
            self.pending += batch.bad

    def report(self, step: int, samples: int) -> None:
        """Report and count the bad samples since the last report. All processes call it together.

        Before the last step, the 95 % interval of the fraction must exceed `max_bad_fraction`, so that one bad sample
        among the first eight does not stop a training run.

        Args:
            step: The last step, counted from 1.
            samples: Number of samples read so far, without bad ones.

        Raises:
            UserError: If too many samples are bad.
        """
        new = list(chain.from_iterable(self.world.gather(self.pending)))
        self.pending = []
        for sample in new:
            if sample in self.samples:
                continue
            self.counts[sample[0]] += 1
            if len(self.samples) < REMEMBERED:
                self.samples[sample] = None
            if self.world.is_main:
                self.ctx.skip(*sample)
        self.reads += len(new)
        if not new:
            return
        reads = self.reads + samples - self.before
        last = step >= self.plan.num_steps
        share = self.reads / reads if last else wilson_interval(self.reads, reads)[0]
        if share > self.plan.loading.max_bad_fraction:
            reasons = most_common(self.counts)
            reason, where = new[-1]
            raise UserError(
                f"{self.ctx.stage}: {self.reads} of {reads} reads failed, of {self.counts.total()} samples: {reasons};"
                f" more than loading.max_bad_fraction: {self.plan.loading.max_bad_fraction};"
                f" the last is {where} ({reason})"
            )

    def state(self) -> dict[str, Any]:
        """Build the state for a checkpoint."""
        return {
            "before": self.before,
            "reads": self.reads,
            "counts": dict(self.counts),
            "samples": list(self.samples),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint. Older versions have all samples without counts, and steps `since`."""
        self.before = state.get("before", state.get("since", 0) * self.plan.global_batch_size)
        self.reads = state["reads"]
        self.samples = dict.fromkeys((reason, where) for reason, where in state["samples"])
        self.counts = Counter(state.get("counts") or [reason for reason, _ in self.samples])
        self.ctx.bad.update(self.counts)
