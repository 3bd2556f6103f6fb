"""What goes wrong in a pre-training is said in words, once; what goes right is left in peace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eva_toy import context, losses, stage
from vfm.events import Event
from vfm_eva.alarm import Alarm


def told(tmp_path: Path, lines: list[tuple[float | None, float, float]], **changes: Any) -> list[str]:
    """The warnings about lines of (loss, constant_loss, mutual_cosine), one in ten steps, from step 110 on."""
    events: list[Event] = []
    alarm = Alarm(context(tmp_path, events.append), stage(steps=500, **changes))
    for number, (loss, constant, mutual) in enumerate(lines):
        values = {"train/loss": loss, "train/constant_loss": constant, "train/mutual_cosine": mutual}
        alarm(Event("metrics", "eva", {"step": 110 + 10 * number, "values": values}))
    assert len([event for event in events if event.type == "metrics"]) == len(lines)
    return [event.data["message"] for event in events if event.type == "warning"]


HEALTHY = (-0.66, -0.6, 0.5)  # about what EVA-01 begins with


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (
            [(-0.6, -0.6, 0.99)] * 5,
            "predictions have collapsed: their mutual cosine is 0.990, that of the targets 0.360",
        ),
        ([(-0.601, -0.6, 0.5)] * 5, "the loss, -0.601, is no better than that of a constant guess, -0.600"),
        ([(-0.02, -0.6, 0.05)] * 5, "no better than that of a constant guess"),
        ([(-0.9999, -0.99999, 0.9)] * 5, "the targets are all alike"),
        ([(-0.75, -0.6, 0.5), (-0.63, -0.6, 0.5), (-0.62, -0.6, 0.5)], "the loss has turned: it is at -0.630"),
    ],
)
def test_each_ailment_is_told_once(tmp_path, lines, line):
    (message,) = told(tmp_path, lines)
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize("cut", [1, 2, 4])
@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([(-0.75, -0.6, 0.5)] * 2 + [(-0.63, -0.6, 0.5)] * 3, "step 130: the loss has turned"),
        ([(-0.6, -0.6, 0.99)] * 5, "step 110: predictions have collapsed"),
    ],
)
def test_a_resumed_training_goes_on_with_what_was_seen_and_told(tmp_path, lines, line, cut):
    """The lines before the cut are in the file; those after it say what they would have said without one."""
    whole: list[Event] = []
    alarm = Alarm(context(tmp_path, whole.append), stage(steps=500))
    for number, (loss, constant, mutual) in enumerate(lines):
        if number == cut:
            alarm = Alarm(context(tmp_path, whole.append), stage(steps=500))
        values = {"train/loss": loss, "train/constant_loss": constant, "train/mutual_cosine": mutual}
        step = 110 + 10 * number
        with (tmp_path / "work" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "split": "train", **values}) + "\n")
        alarm(Event("metrics", "eva", {"step": step, "values": values}))
    (message,) = [event.data["message"] for event in whole if event.type == "warning"]
    assert line in message


def test_a_healthy_curve_is_left_in_peace(tmp_path):
    falling = [(-0.66 - 0.01 * line + 0.02 * (-1) ** line, -0.6, 0.5) for line in range(15)]
    assert told(tmp_path, [HEALTHY, *falling]) == []


def test_a_loss_that_is_no_number_is_the_loops_to_tell(tmp_path):
    assert told(tmp_path, [(None, -0.6, 0.99)]) == []


def test_there_is_a_time_of_grace_after_the_warm_up(tmp_path):
    collapsed = [(-0.6, -0.6, 0.99)] * 3  # steps 110, 120, 130
    assert told(tmp_path, collapsed, warmup_steps=30) == []
    assert len(told(tmp_path, collapsed, warmup_steps=29)) == 1
    long = stage(steps=1_000_000, warmup_steps=14_000)
    assert Alarm(context(tmp_path), long).grace == 19_000


def run_and_listen(folder: Path, pool: Any, teacher: Any, **settings: Any) -> list[str]:
    events: list[Event] = []
    ctx = context(folder, events.append, pool=pool, teacher=teacher)
    settings = {"steps": 125, "global_batch_size": 16, "lr": 5e-3, "warmup_steps": 5, "log_every": 5, **settings}
    stage(**settings).run(ctx)
    return [event.data["message"] for event in events if event.type == "warning"]


def test_a_training_that_learns_gives_no_alarm(tmp_path, pool, teacher):
    assert run_and_listen(tmp_path, pool, teacher) == []
    assert losses(tmp_path)[-1] < -0.6


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            {"weight_decay": 100, "lr": 1e-2},
            "predictions have collapsed",
        ),  # each step sets the weights to next to nothing
        ({"lr": 1e-7, "min_lr": 0}, "no better than that of a constant guess"),
    ],
)
def test_a_training_that_learns_nothing_says_so(tmp_path, pool, teacher, fault, line):
    (message,) = run_and_listen(tmp_path, pool, teacher, **fault)
    assert line in message
