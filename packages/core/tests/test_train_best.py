"""`keep_best` exports the weights with the highest score, interrupted or not, and reports which they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from train_toy import Plan, Probe, Regression, Samples, plan, train
from vfm.interfaces import load_panels
from vfm.plugin import Context, UserError


class Peak(Probe):
    """A score that is highest where the network returns 1.4 for a row of ones; training passes it on the way to 4."""

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        with torch.no_grad():
            return {"near": -abs(float(encoder(torch.ones(1, 4))) - 1.4)}


def peaked(**changes: Any) -> Plan:
    settings = {"steps": 12, "every_steps": 2, "tasks": [Peak(name="probe")], "keep_best": "val/near"}
    return plan(**{**settings, "checkpoint": {"every_steps": 3}, **changes})


def evaluated(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == "val"]


def near(task: Regression) -> float:
    task.eval()
    return Peak(name="probe").scores(None, task.net)["near"]  # type: ignore[arg-type]


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_weights_with_the_highest_score_are_exported_and_reported(tmp_path, ema_decay):
    task, ctx, events = train(tmp_path, peaked(ema_decay=ema_decay), task=Regression(norm=True))
    lines = evaluated(tmp_path)
    best = max(lines, key=lambda line: line["val/near"])
    assert best["step"] < 12, "the test needs a peak before the last step"
    assert near(task) == pytest.approx(best["val/near"], abs=1e-7)
    (message,) = [e.data["message"] for e in events if e.type == "log" and "keep_best" in e.data["message"]]
    assert f"val/near is highest after step {best['step']} of 12" in message
    assert f"these weights are exported; the last ones have {lines[-1]['val/near']:.4g}" in message
    (panel,) = [panel for panel in load_panels(ctx.directory) if panel.title == "Exported weights"]
    assert panel.text in message


class Sometimes(Probe):
    """Return NaN for the first and the third evaluation."""

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        calls.append(len(calls))
        return {"near": [float("nan"), 0.5, float("nan"), 0.25][len(calls) - 1]}


calls: list[int] = []


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    calls.clear()
    _, _, events = train(tmp_path, peaked(steps=6, tasks=[Sometimes(name="probe")]))
    assert any("is highest after step 2 of 6, 0.5" in str(event.data.get("message")) for event in events)


def test_last_weights_are_exported_without_keep_best(tmp_path):
    task, _, events = train(tmp_path, peaked(keep_best=None), task=Regression(norm=True))
    assert near(task) == evaluated(tmp_path)[-1]["val/near"]
    assert not any("keep_best" in str(event.data) for event in events)


@pytest.mark.parametrize("step", [4, 7, 10])
def test_interrupted_training_ends_with_the_same_weights(tmp_path, step):
    whole, _, _ = train(tmp_path / "whole", peaked(), task=Regression(dropout=0.2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", peaked(), task=Regression(dropout=0.2), data=Samples(stop=step))
    cut, _, _ = train(tmp_path / "cut", peaked(), task=Regression(dropout=0.2))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


class Origin(Probe):
    """A score that is highest where the network returns 0, close to its initial output."""

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        with torch.no_grad():
            return {"near": -abs(float(encoder(torch.ones(1, 4))))}


def test_initial_weights_are_kept_if_training_lowers_the_score_interrupted_or_not(tmp_path):
    settings = peaked(tasks=[Origin(name="probe")])
    start = {name: value.clone() for name, value in Regression().state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, data=Samples(stop=7))
    task, _, events = train(tmp_path, settings)
    assert [line["step"] for line in evaluated(tmp_path)] == [0, 2, 4, 6, 8, 10, 12]
    assert all(torch.equal(value, start[name]) for name, value in task.state_dict().items())
    assert any("val/near is highest after step 0 of 12" in str(event.data) for event in events)


def test_unknown_metric_is_an_error_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"toy: keep_best: no evaluation measures val/nera; did you mean 'val/near'"):
        train(tmp_path, peaked(keep_best="val/nera"), data=Samples(stop=0))


def test_keep_best_needs_evaluations():
    with pytest.raises(ValidationError, match="keep_best needs tasks and every_steps"):
        plan(keep_best="val/near")


def test_metric_without_the_prefix_of_an_evaluation_is_refused():
    with pytest.raises(ValidationError, match="keep_best: expected a metric that begins with val/, got near"):
        peaked(keep_best="near")
