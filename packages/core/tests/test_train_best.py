"""`keep_best`: what is exported is what scored highest, cut or not, and it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from train_toy import Plan, Probe, Regression, Samples, plan, train
from vfm import Context, UserError
from vfm.panels import load_panels


class Peak(Probe):
    """A score that is highest where the network answers 1.4 to a row of ones; on its way to 4 it passes that."""

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        with torch.no_grad():
            return {"near": -abs(float(encoder(torch.ones(1, 4))) - 1.4)}


def peaked(**changes: Any) -> Plan:
    settings = {"steps": 12, "eval_every": 2, "evals": [Peak(name="probe")], "keep_best": "val/near"}
    return plan(**{**settings, "checkpoint": {"every_steps": 3}, **changes})


def judged(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == "val"]


def near(task: Regression) -> float:
    task.eval()
    return Peak(name="probe").scores(None, task.net)["near"]  # type: ignore[arg-type]


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_weights_with_the_highest_score_come_back_and_which_they_are_is_told(tmp_path, ema_decay):
    task, ctx, events = train(tmp_path, peaked(ema_decay=ema_decay), task=Regression(norm=True))
    lines = judged(tmp_path)
    best = max(lines, key=lambda line: line["val/near"])
    assert best["step"] < 12, "the peak must not lie at the end for this to say something"
    assert near(task) == pytest.approx(best["val/near"], abs=1e-7)
    (said,) = [e.data["message"] for e in events if e.type == "log" and "keep_best" in e.data["message"]]
    assert f"val/near is highest after step {best['step']} of 12" in said
    assert f"not the last ones, which have {lines[-1]['val/near']:.4g}" in said
    (panel,) = [panel for panel in load_panels(ctx.directory) if panel.title == "Weights that are kept"]
    assert panel.text in said


def test_without_it_the_last_weights_are_what_is_left(tmp_path):
    task, _, events = train(tmp_path, peaked(keep_best=None), task=Regression(norm=True))
    assert near(task) == judged(tmp_path)[-1]["val/near"]
    assert not any("keep_best" in str(event.data) for event in events)


@pytest.mark.parametrize("step", [4, 7, 10])
def test_a_cut_training_ends_with_the_same_weights(tmp_path, step):
    whole, _, _ = train(tmp_path / "whole", peaked(), task=Regression(dropout=0.2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", peaked(), task=Regression(dropout=0.2), data=Samples(stop=step))
    cut, _, _ = train(tmp_path / "cut", peaked(), task=Regression(dropout=0.2))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


class Origin(Probe):
    """A score that is highest where the network answers 0, near which it starts."""

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        with torch.no_grad():
            return {"near": -abs(float(encoder(torch.ones(1, 4))))}


def test_a_start_that_training_makes_worse_is_kept_cut_or_not(tmp_path):
    settings = peaked(evals=[Origin(name="probe")])
    start = {name: value.clone() for name, value in Regression().state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, data=Samples(stop=7))
    task, _, events = train(tmp_path, settings)
    assert [line["step"] for line in judged(tmp_path)] == [0, 2, 4, 6, 8, 10, 12]
    assert all(torch.equal(value, start[name]) for name, value in task.state_dict().items())
    assert any("val/near is highest after step 0 of 12" in str(event.data) for event in events)


def test_a_score_that_is_not_measured_is_told_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"toy: keep_best: the evals do not measure val/nera; did you mean 'val/near'"):
        train(tmp_path, peaked(keep_best="val/nera"), data=Samples(stop=0))


def test_there_must_be_something_to_choose_among():
    with pytest.raises(ValidationError, match="keep_best chooses among weights: evals and eval_every say which"):
        plan(keep_best="val/near")


def test_a_name_that_no_score_of_theirs_begins_with_is_refused_before_anything_runs():
    with pytest.raises(ValidationError, match="keep_best: near is no score of the evals; theirs begin with val/"):
        peaked(keep_best="near")
