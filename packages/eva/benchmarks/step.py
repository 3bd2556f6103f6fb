"""One optimiser step: vfm's loop, the plain timm loop, and the teacher alone, in turn on the same batches."""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench import CUDA, Bench, clock, context, moved, pretrain
from plain_loop import PlainLoop

from vfm.data.loader import Batch, TrainingData
from vfm.data.source import open_dataset
from vfm.train import fit
from vfm_eva import MakeViews, MaskedData, Masks
from vfm_eva.images import crop_transform

WARM_UP = 3  # steps that are not counted


class InTurn:
    """The same batches again and again; after each step of the loop that takes them the others do theirs.

    So what else the machine is doing meets all of them alike.
    """

    def __init__(self, batches: list[Batch], others: Mapping[str, Callable[[Batch], Any]]) -> None:
        self.batches, self.others = batches, others
        self.seconds: dict[str, list[float]] = {name: [] for name in ("vfm", *others)}

    def steps(self, start_step: int, num_steps: int, **sizes: int) -> Iterator[list[Batch]]:
        for batch in itertools.islice(itertools.cycle(self.batches), num_steps - start_step):
            start = clock()
            yield [batch]
            self.seconds["vfm"].append(clock() - start)
            for name, other in self.others.items():
                start = clock()
                other(batch)
                self.seconds[name].append(clock() - start)


class Step(Bench):
    """Measures a step."""

    def measure(self) -> dict[str, float]:
        """Milliseconds of a step, ours and the plain loop's, on the same batches from the same weights."""
        device = "cuda" if CUDA else "cpu"
        config = pretrain(
            self.rounds * self.steps, self.batch, log_every=self.rounds * self.steps - 1, teacher_precision="fp32"
        )
        task = self.task(config)
        plain, losses = self._plain(copy.deepcopy(task).to(device)), list[float]()
        task.teacher.module.to(device)
        others: dict[str, Callable[[Batch], Any]] = {
            "plain": lambda batch: losses.append(plain.step(batch)),
            "teacher": lambda batch: task.teacher.of(batch, task.grid),
        }
        data = InTurn([moved(batch, device) for batch in self._batches(task, 4)], others)
        ctx = context(self.folder())
        fit(task, data, config, ctx, config.runtime)
        line = (ctx.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]
        counted = {name: values[WARM_UP:] for name, values in data.seconds.items()}
        medians = {name: 1e3 * statistics.median(values) for name, values in counted.items()}
        ratios = [ours / theirs for ours, theirs in zip(counted["vfm"], counted["plain"], strict=True)]
        return {
            "vfm, ms": medians["vfm"],
            "plain timm loop, ms": medians["plain"],
            "vfm / plain, median": statistics.median(ratios),
            "teacher's share": medians["teacher"] / medians["vfm"],
            "mean losses apart": abs(json.loads(line)["train/loss"] - statistics.mean(losses)),
        }

    def _plain(self, task: Any) -> PlainLoop:
        visual = task.teacher.module
        visual.output_tokens = True
        pixels = (task.preprocess.pixels, task.teacher.preprocess.pixels)
        return PlainLoop(task.student.train(), task.head, task.mask_token, visual, pixels)

    def _batches(self, task: Any, count: int) -> list[Batch]:
        make = MakeViews(*(crop_transform(pretrain(1, 1), model.preprocess) for model in (task, task.teacher)))
        data = TrainingData(open_dataset(self.pool), make, global_batch_size=self.batch)
        masks = Masks("block", task.grid, task.num_masked)
        steps = MaskedData(data, masks).steps(0, count, micro_batch_size=self.batch)
        return [{**batch, "bad": []} for (batch,) in steps]
