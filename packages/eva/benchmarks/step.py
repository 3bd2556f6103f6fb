"""One optimiser step: vfm's loop, the plain timm loop, and the teacher alone, on the same batches."""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from collections.abc import Iterator
from typing import Any

from bench import CUDA, Bench, clock, context, moved, pretrain
from plain_loop import PlainLoop

from vfm.data.loader import Batch, TrainingData
from vfm.data.source import open_dataset
from vfm.train import fit
from vfm_eva import MakeViews, MaskedData, Masks
from vfm_eva.images import crop_transform


class Repeated:
    """The same batches again and again, with the time at which each was asked for."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.times = batches, list[float]()

    def steps(self, start_step: int, num_steps: int, **sizes: int) -> Iterator[list[Batch]]:
        for batch in itertools.islice(itertools.cycle(self.batches), num_steps - start_step):
            self.times.append(clock())
            yield [batch]


def seconds(times: list[float]) -> float:
    """The median step, the first two left out."""
    return statistics.median(after - before for before, after in itertools.pairwise(times[2:]))


class Step(Bench):
    """Measures a step."""

    def measure(self) -> dict[str, float]:
        """Milliseconds of a step, ours and the plain loop's, on the same batches from the same weights."""
        config = pretrain(self.steps, self.batch, log_every=self.steps)
        fresh = self.task(config)
        device = "cuda" if CUDA else "cpu"
        batches = [moved(batch, device) for batch in self.batches(fresh, 4)]
        found: dict[str, list[float]] = {"vfm": [], "plain": [], "teacher": []}
        apart = []
        for number in range(self.rounds):
            order = ["vfm", "plain"] if number % 2 else ["plain", "vfm"]
            losses = {}
            for name in order:
                task, data = copy.deepcopy(fresh), Repeated(batches)
                if name == "vfm":
                    ctx = context(self.folder())
                    fit(task, data, config, ctx, config.runtime)
                    (line,) = (ctx.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                    losses[name] = json.loads(line)["train/loss"]
                else:
                    losses[name] = statistics.mean(self._plain(task.to(device), data))
                found[name].append(seconds(data.times))
            apart.append(abs(losses["vfm"] - losses["plain"]))
            found["teacher"].append(self._teacher(fresh.to(device), batches))
        medians = {name: 1e3 * statistics.median(values) for name, values in found.items()}
        ratios = [ours / plain for ours, plain in zip(found["vfm"], found["plain"], strict=True)]
        return {
            "vfm, ms": medians["vfm"],
            "plain timm loop, ms": medians["plain"],
            "vfm / plain": statistics.median(ratios),
            "teacher's share": medians["teacher"] / medians["vfm"],
            "losses apart, at most": max(apart),
        }

    def _plain(self, task: Any, data: Repeated) -> Iterator[float]:
        visual = task.teacher.module.visual
        visual.output_tokens = True
        pixels = (task.preprocess.pixels, task.teacher.preprocess.pixels)
        loop = PlainLoop(task.student.train(), task.head, task.mask_token, visual, pixels)
        return loop.run(batch for (batch,) in data.steps(0, self.steps))

    def _teacher(self, task: Any, batches: list[Batch]) -> float:
        times = []
        for batch in batches:
            start = clock()
            task.teacher.of(batch, task.grid)
            times.append(clock() - start)
        return statistics.median(times)

    def batches(self, task: Any, count: int) -> list[Batch]:
        make = MakeViews(*(crop_transform(pretrain(1, 1), model.preprocess) for model in (task, task.teacher)))
        data = TrainingData(open_dataset(self.pool), make, global_batch_size=self.batch)
        masks = Masks("block", task.grid, task.num_masked)
        steps = MaskedData(data, masks).steps(0, count, micro_batch_size=self.batch)
        return [{**batch, "bad": []} for (batch,) in steps]
