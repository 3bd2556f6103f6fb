"""A pre-training that goes wrong raises one warning; one that learns raises none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eva_toy import context, losses, stage
from vfm.plugin import Context, Event
from vfm_eva import EvaPretrain
from vfm_eva.pretrain.alarm import PretrainAlarm


def alarm_of(config: EvaPretrain, ctx: Context) -> PretrainAlarm:
    return PretrainAlarm(ctx, warmup_steps=config.schedule.warmup_steps, num_steps=config.num_steps)


def raised(tmp_path: Path, lines: list[tuple[float | None, float, float]], **changes: Any) -> list[str]:
    """Return the warnings about (loss, constant_loss, mutual_cosine) of every tenth step from step 110 on."""
    events: list[Event] = []
    alarm = alarm_of(stage(steps=500, **changes), context(tmp_path, events.append))
    for number, (loss, constant, mutual) in enumerate(lines):
        values = {"train/loss": loss, "train/constant_loss": constant, "train/mutual_cosine": mutual}
        alarm(Event("metrics", "eva", {"step": 110 + 10 * number, "values": values}))
    assert len([event for event in events if event.type == "metrics"]) == len(lines)
    return [event.data["message"] for event in events if event.type == "warning"]


HEALTHY = (-0.66, -0.6, 0.5)  # about the beginning of EVA-01


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (
            [(-0.6, -0.6, 0.99)] * 5,
            "predictions have collapsed: their mutual cosine is 0.990, that of the targets 0.360",
        ),
        ([(-0.601, -0.6, 0.5)] * 5, "the loss, -0.601, is no better than that of a constant prediction, -0.600"),
        ([(-0.02, -0.6, 0.05)] * 5, "no better than that of a constant prediction"),
        ([(-0.9999, -0.99999, 0.9)] * 5, "all targets are nearly equal"),
        ([(-0.75, -0.6, 0.5), (-0.63, -0.6, 0.5), (-0.62, -0.6, 0.5)], "the loss rises: it is -0.630"),
    ],
)
def test_each_problem_is_reported_once(tmp_path, lines, line):
    (message,) = raised(tmp_path, lines)
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize("cut", [1, 2, 4])
@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([(-0.75, -0.6, 0.5)] * 2 + [(-0.63, -0.6, 0.5)] * 3, "step 130: the loss rises"),
        ([(-0.6, -0.6, 0.99)] * 5, "step 110: predictions have collapsed"),
    ],
)
def test_a_resumed_training_neither_repeats_nor_misses_a_warning(tmp_path, lines, line, cut):
    """Check that metrics before the interruption, which are in the file, count as in an unbroken training."""
    whole: list[Event] = []
    alarm = alarm_of(stage(steps=500), context(tmp_path, whole.append))
    for number, (loss, constant, mutual) in enumerate(lines):
        if number == cut:
            alarm = alarm_of(stage(steps=500), context(tmp_path, whole.append))
        values = {"train/loss": loss, "train/constant_loss": constant, "train/mutual_cosine": mutual}
        step = 110 + 10 * number
        with (tmp_path / "work" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "split": "train", **values}) + "\n")
        alarm(Event("metrics", "eva", {"step": step, "values": values}))
    (message,) = [event.data["message"] for event in whole if event.type == "warning"]
    assert line in message


def test_a_falling_curve_raises_no_warning(tmp_path):
    falling = [(-0.66 - 0.01 * line + 0.02 * (-1) ** line, -0.6, 0.5) for line in range(15)]
    assert raised(tmp_path, [HEALTHY, *falling]) == []


def test_a_loss_is_compared_with_the_mean_constant_of_the_lines_each_of_which_has_that_of_one_batch(tmp_path):
    noisy = [(-0.68, -0.6 + 0.07 * (-1) ** line, 0.5) for line in range(15)]
    assert raised(tmp_path, noisy) == []


def test_a_loss_that_is_not_finite_is_left_to_the_loop(tmp_path):
    assert raised(tmp_path, [(None, -0.6, 0.99)]) == []


def test_there_is_a_grace_period_after_the_warm_up(tmp_path):
    collapsed = [(-0.6, -0.6, 0.99)] * 3  # steps 110, 120, 130
    assert raised(tmp_path, collapsed, schedule={"warmup_steps": 30}) == []
    assert len(raised(tmp_path, collapsed, schedule={"warmup_steps": 29})) == 1
    long = stage(steps=1_000_000, schedule={"warmup_steps": 14_000})
    assert alarm_of(long, context(tmp_path)).grace == 19_000


def run_and_listen(folder: Path, pool: Any, teacher: Any, **settings: Any) -> list[str]:
    events: list[Event] = []
    ctx = context(folder, events.append, pool=pool, teacher=teacher)
    settings = {"steps": 125, "global_batch_size": 16, "lr": 5e-3, "log_every": 5, **settings}
    settings = {"schedule": {"warmup_steps": 5}, **settings}
    stage(**settings).run(ctx)
    return [event.data["message"] for event in events if event.type == "warning"]


def test_a_training_that_learns_raises_no_warning(tmp_path, pool, teacher):
    assert run_and_listen(tmp_path, pool, teacher) == []
    assert losses(tmp_path)[-1] < -0.6


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            {"optimizer": {"weight_decay": 100}, "lr": 1e-2},
            "predictions have collapsed",
        ),  # each step sets the weights to almost zero
        ({"lr": 1e-7, "schedule": {"warmup_steps": 5, "min_lr": 0}}, "no better than that of a constant prediction"),
    ],
)
def test_a_training_that_learns_nothing_raises_a_warning(tmp_path, pool, teacher, fault, line):
    (message,) = run_and_listen(tmp_path, pool, teacher, **fault)
    assert line in message


def test_a_line_without_the_metrics_of_log_steps_is_not_judged(tmp_path):
    events: list[Event] = []
    alarm = alarm_of(stage(steps=500), context(tmp_path, events.append))
    alarm(Event("metrics", "eva", {"step": 200, "values": {"train/loss": 0.0}}))
    assert [event.type for event in events] == ["metrics"]
