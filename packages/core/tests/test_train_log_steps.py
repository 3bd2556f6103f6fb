"""Metrics that are computed at log steps only: they cost nothing elsewhere, and the log is that of a plain twin."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from train_toy import Regression, Samples, plan, train
from vfm.data.loading.batch import Batch
from vfm.interfaces import Context, load_panels
from vfm.train.cost.throughput import Throughput
from vfm.train.loop.curves import MetricsLog
from vfm.train.parallel.dist import DistributedWorld


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


class Counted(Regression):
    """Counts the operations of the losses and gradients of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def accumulate(self, *args: Any) -> dict[str, Tensor]:
        with Operations() as operations:
            metrics = super().accumulate(*args)
        self.counts.append(operations.number)
        return metrics


class WithoutPower(Counted):
    def metrics(self, guess: Tensor) -> dict[str, Tensor]:
        return {"guess": guess.mean()}


class PowerInEveryStep(Regression):
    def metrics(self, guess: Tensor) -> dict[str, Tensor]:
        return {"guess": guess.mean(), "power": guess.square().mean()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]


def column(folder: Path, name: str) -> list[float]:
    return [line[f"train/{name}"] for line in lines(folder)]


@pytest.mark.parametrize("micro_batch_size", [8, 4])
def test_a_line_has_the_value_of_its_step_beside_the_means_of_a_plain_twin(tmp_path, micro_batch_size):
    settings = {"steps": 10, "micro_batch_size": micro_batch_size}
    task, *_ = train(tmp_path / "sparse", plan(**settings, log_every=4))
    twin, *_ = train(tmp_path / "twin", plan(**settings, log_every=1), task=PowerInEveryStep())
    assert [line["step"] for line in lines(tmp_path / "sparse")] == [4, 8, 10]
    power = column(tmp_path / "twin", "power")
    assert column(tmp_path / "sparse", "power") == [power[3], power[7], power[9]]
    for name in ("loss", "guess", "grad_norm"):
        every = column(tmp_path / "twin", name)
        means = [sum(every[i:j]) / (j - i) for i, j in ((0, 4), (4, 8), (8, 10))]
        assert column(tmp_path / "sparse", name) == pytest.approx(means, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), twin.parameters(), strict=True))


def test_steps_without_a_line_run_the_operations_of_a_task_without_the_metric(tmp_path):
    task, plain = Counted(), WithoutPower()
    train(tmp_path / "task", plan(steps=10, log_every=4), task=task)
    train(tmp_path / "plain", plan(steps=10, log_every=4), task=plain)
    more = [ours - theirs for ours, theirs in zip(task.counts, plain.counts, strict=True)]
    assert [step for step, extra in enumerate(more, 1) if extra] == [4, 8, 10]
    assert min(more) == 0


def test_before_a_skipped_log_step_the_last_step_that_is_taken_has_the_metric(tmp_path):
    settings = plan(steps=12, skip_steps=[7, 8, 12], checkpoint={"every_steps": 1})
    train(tmp_path / "whole", settings)
    train(tmp_path / "twin", plan(skip_steps=[7, 8, 12], log_every=1), task=PowerInEveryStep())
    power: Mapping[int, float] = {line["step"]: line["train/power"] for line in lines(tmp_path / "twin")}
    assert column(tmp_path / "whole", "power") == [power[4], power[6], power[11]]
    with pytest.raises(KeyboardInterrupt):  # between that step and the line
        train(tmp_path / "cut", settings, data=Samples(stop=6))
    train(tmp_path / "cut", settings)
    logs = [(tmp_path / name / "part" / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("skipped", [4, 8])
def test_a_line_without_the_step_that_was_to_give_a_metric_has_none(tmp_path, skipped):
    settings = {"steps": 12, "log_every": 4, "checkpoint": {"every_steps": 1}}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, plan(**settings), data=Samples(stop=skipped - 1))
    train(tmp_path, plan(**settings, skip_steps=[skipped]))
    power = {line["step"]: line.get("train/power") for line in lines(tmp_path)}
    assert [step for step, value in power.items() if value is None] == [skipped]
    assert None not in column(tmp_path, "loss")
    (chart,) = (panel for panel in load_panels(tmp_path / "part") if panel.title == "Power")
    assert dict(zip(chart.series[0].x, chart.series[0].y, strict=True)) == power


def test_sums_of_a_checkpoint_of_an_older_version_are_left_out(tmp_path):
    made, world = plan(), DistributedWorld(torch.device("cpu"))
    curves = MetricsLog(
        Context("toy", tmp_path, tmp_path, {}), made, world, Throughput(world.device, made.runtime, half=False)
    )
    curves.restore({"names": ["loss", "grad_norm"], "totals": [3.0, 3.0], "count": 2, "file_bytes": 0})
    curves.add(["loss", "grad_norm"], torch.tensor([1.0, 2.0]))
    curves.write(4, 0.1, paused=0.0)
    (line,) = map(json.loads, curves.file.read_text().splitlines())
    assert (line["train/loss"], line["train/grad_norm"]) == (1.0, 2.0)


def test_speed_is_that_of_the_samples_that_were_read(tmp_path, monkeypatch):
    events = []
    ticks = iter([0.0, 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    made, world = plan(), DistributedWorld(torch.device("cpu"))
    context = Context("toy", tmp_path, tmp_path, {}, events.append)
    curves = MetricsLog(context, made, world, Throughput(world.device, made.runtime, half=False))
    curves.count([Batch(None, ["a", "b", "c"]), Batch(None, ["d"])])
    curves.add(["loss"], torch.tensor([1.0]))
    curves.write(1, 0.1, paused=0.0)
    (metrics,) = (event.data for event in events if event.type == "metrics")
    assert (metrics["samples"], metrics["values"]["train/samples_per_second"]) == (4, 2.0)
