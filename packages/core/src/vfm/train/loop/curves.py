"""Sum the metrics of a training run on the device, read them every `log_every` steps, and store them as lines.

`metrics.jsonl` contains only values that the configuration determines, so a resumed run writes the same bytes as an
uninterrupted one. Speed, data wait and memory are only in the `metrics` event.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vfm.data.loading.batch import Batch
from vfm.interfaces import Context, Evaluation, Training
from vfm.train.cost.throughput import Throughput
from vfm.train.loop.training_charts import (
    METRICS_FILE as METRICS_FILE,  # public in `vfm.train`
    training_charts,
)
from vfm.train.parallel.dist import DistributedWorld


class MetricsLog:
    """Metrics as means over the steps since the last log line that reported them.

    A metric that is only computed at log steps (`Task.is_log_step`) thus has the value of the last step. A line has all
    names of earlier lines. A metric that no step has reported is None, since a resumed run may have another
    `log_every`, or skip the step at which the metric was due.
    """

    def __init__(self, ctx: Context, plan: Training, world: DistributedWorld, throughput: Throughput) -> None:
        self.ctx = ctx
        self.plan = plan
        self.world = world
        self.throughput = throughput
        self.file = ctx.work / METRICS_FILE
        self.samples = 0  # read so far by all processes; a DataLoader may have a smaller last batch
        self.names: list[str] = []  # in the lines so far
        self.sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}  # names of metrics -> sums, number of steps
        self.waited = 0.0  # seconds without data since the last log line
        self.restart_clock()

    def due(self, step: int) -> bool:
        """Check whether a line is due after this step, counted from 1."""
        return step % self.plan.log_every == 0 or step == self.plan.num_steps

    def is_last_before_line(self, step: int) -> bool:
        """Check whether no later step is taken before the next line, because `skip_steps` has all of them."""
        while not self.due(step):
            step += 1
            if step not in self.plan.skip_steps:
                return False
        return True

    def count(self, micro_batches: Sequence[Batch[Any]]) -> None:
        """Count the samples of a step, of which each process has an equal part."""
        self.samples += self.world.size * sum(map(len, micro_batches))

    def add(self, names: list[str], values: Tensor) -> None:
        """Add the metrics of a step without synchronising with the device."""
        # One sum for each set of names: a step adds a vector in one launch, and steps that report more metrics than
        # others keep their own count.
        total, count = self.sums.get(tuple(names), (torch.zeros_like(values), 0))
        self.sums[tuple(names)] = (total + values, count + 1)
        self._steps += 1

    def write(self, step: int, lr: float, paused: float) -> None:
        """Read the means, append a line, and send them to the listeners.

        Args:
            step: Number of optimizer steps so far.
            lr: The learning rate.
            paused: Seconds since the last line in which this process waited for checkpoints.
        """
        if not self.sums:  # all steps since the last line were skipped (`skip_steps`)
            return
        means = self._means()
        self.names = sorted({*self.names, *means})
        self.sums = {}
        values = {_key(name): _finite(means.get(name)) for name in self.names}
        values["train/lr"] = lr
        speed = self._speed(paused)
        if not self.world.is_main:
            return
        self._append({"step": step, "samples": self.samples, "split": "train", **values})
        self.ctx.emit("metrics", step=step, samples=self.samples, values={**values, **speed})
        shown = {"loss": values["train/loss"], "lr": lr, "samples_per_second": speed["train/samples_per_second"]}
        self.ctx.progress(step, self.plan.num_steps, **shown)

    def _means(self) -> dict[str, float]:
        """Compute the mean of each metric."""
        totals = Counter[str]()
        counts = Counter[str]()
        for names, (total, count) in self.sums.items():
            for name, value in zip(names, total.tolist(), strict=True):
                totals[name] += value
                counts[name] += count
        return {name: totals[name] / counts[name] for name in totals}

    def write_scores(self, step: int, evaluation: Evaluation, scores: Mapping[str, float]) -> dict[str, float]:
        """Append the scores of an evaluation, and send them to the listeners.

        Args:
            step: Step of the evaluation.
            evaluation: The evaluation.
            scores: Its scores.

        Returns:
            The scores by their names in the log.
        """
        values = {f"val/{evaluation.log_prefix}{metric}": value for metric, value in scores.items()}
        self._append({"step": step, "samples": self.samples, "split": "val", "eval": evaluation.name, **values})
        self.ctx.emit("metrics", step=step, samples=self.samples, values=values)
        return values

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def restart_clock(self) -> None:
        """Restart the measurement of speed after a pause in training."""
        self._since, self._steps, self._samples, self.waited = time.perf_counter(), 0, self.samples, 0.0

    def _speed(self, paused: float) -> dict[str, float]:
        now = time.perf_counter()
        # At least a nanosecond, since the clock may not advance between two steps of a tiny model.
        seconds = max(now - self._since, 1e-9)
        self._since = now
        waited = self.waited
        self.waited = 0.0
        steps = self._steps
        self._steps = 0
        samples = self.samples - self._samples
        self._samples = self.samples
        memory = round(memory_gib(self.world.device), 3)
        # The slowest process holds up all others, so the log has the largest share of any process.
        by_rank = self.world.gather((waited / seconds, paused / seconds, memory))
        data_waits, checkpoint_waits, sizes = zip(*by_rank, strict=True)
        speed = {
            "train/samples_per_second": round(samples / seconds, 2),
            "train/data_wait_pct": round(100 * max(data_waits), 1),
            "train/checkpoint_wait_pct": round(100 * max(checkpoint_waits), 1),
            **self.throughput.reached(steps, seconds),
            "sys/mem_gib": max(sizes),
        }
        if len(sizes) > 1:
            for rank, size in enumerate(sizes):
                speed[f"sys/mem_gib/{rank}"] = size
        return speed

    def state(self) -> dict[str, Any]:
        """Build the state for a checkpoint, with the sums since the last line, the samples and the file's length."""
        sums = [[names, total.tolist(), count] for names, (total, count) in self.sums.items()]
        size = self.file.stat().st_size if self.file.exists() else 0
        return {"names": self.names, "sums": sums, "samples": self.samples, "file_bytes": size}

    def restore(self, state: dict[str, Any] | None, step: int = 0) -> None:
        """Restore the state from a checkpoint after a step, and cut off later lines.

        Args:
            state: State of the checkpoint. None restores the initial state.
            step: Step of the checkpoint.
        """
        if self.world.is_main:
            self.file.touch()
            expected = state["file_bytes"] if state else 0
            # The resumed run writes the later lines again. Only whole lines are kept, as a power cut may have lost a
            # part of one.
            size = self.file.read_bytes()[:expected].rfind(b"\n") + 1
            if size < expected:
                self.ctx.warn(f"{self.file}: expected {expected} bytes, got {size}: lines of earlier steps are lost")
            os.truncate(self.file, size)
        if state:
            self.names = state["names"]
            # A checkpoint of an older version has no samples.
            self.samples = state.get("samples", step * self.plan.global_batch_size)
            for names, total, count in state.get("sums", []):  # a checkpoint of an older version has other sums
                self.sums[tuple(names)] = (torch.tensor(total, device=self.world.device), count)
        self.restart_clock()

    def finish(self) -> None:
        """Copy the lines into the artifact and draw the curves as panels."""
        self.ctx.directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.file, self.ctx.directory / METRICS_FILE)
        for panel in training_charts(self.file):
            self.ctx.panel(panel)


def memory_gib(device: torch.device) -> float:
    """Measure the peak memory so far, on the CUDA device or else in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _finite(value: float | None) -> float | None:
    if value is not None and math.isfinite(value):
        return value
    return None


def _key(name: str) -> str:
    return name if "/" in name else f"train/{name}"
