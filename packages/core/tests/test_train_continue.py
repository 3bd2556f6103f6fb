"""Runs that change: settings outside the identity, `continue_from`, skipped steps, kept checkpoints, cool-downs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import train_toy
from train_toy import Probe, Regression, Samples, plan
from vfm.base import decisive_settings, incidental_settings
from vfm.flow.plan.continuation import check_continuation
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.manifest import EventNotes
from vfm.interfaces import Event, WarmupStableDecay
from vfm.plugin import Context, Preflight, UserError
from vfm.train import fit
from vfm.train.checkpoint.checkpoint_folders import checkpoint_folder

STEADY = {"schedule": "constant", "ema_decay": 0.9, "checkpoint": {"keep_state": True}}


def train(
    folder: Path, settings: Any, inputs: dict[str, Path] | None = None, norm: bool = True, **data: Any
) -> tuple[Any, list[Event]]:
    """Train in `folder`, from the artifacts in `inputs`; return the task and the events."""
    task = Regression(norm=norm)
    events: list[Event] = []
    ctx = Context(settings.name, folder / "part", folder / "work", inputs or {}, events.append)
    fit(task, Samples(settings.global_batch_size, **data), settings, ctx)
    return task, events


def assert_equal(a: Any, b: Any) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_more_steps_from_a_kept_state_equal_one_longer_training(tmp_path: Path, optimizer: str) -> None:
    whole, _ = train(tmp_path / "whole", plan(steps=20, optimizer=optimizer, **STEADY))
    train(tmp_path / "first", plan(steps=12, optimizer=optimizer, **STEADY))
    longer = plan(steps=20, optimizer=optimizer, continue_from={"training": "first"}, **STEADY)
    rest, events = train(tmp_path / "rest", longer, {"first": tmp_path / "first" / "part"})
    assert_equal(whole, rest)
    assert "continues after step 12 of 20" in [event.data.get("message") for event in events]
    logs = [(tmp_path / name / "part" / "metrics.jsonl").read_bytes() for name in ("whole", "rest")]
    assert logs[0] == logs[1]


def test_a_cut_continuation_resumes_from_its_own_checkpoint(tmp_path: Path) -> None:
    settings = plan(steps=20, continue_from={"training": "first"}, **STEADY | {"checkpoint": {"every_steps": 4}})
    inputs = {"first": tmp_path / "first" / "part"}
    train(tmp_path / "first", plan(steps=8, **STEADY))
    whole, _ = train(tmp_path / "whole", settings, inputs)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", settings, inputs, stop=14)
    cut, events = train(tmp_path / "cut", settings, inputs)
    assert "resumes after step 12 of 20" in [event.data.get("message") for event in events]
    assert_equal(whole, cut)


def test_a_cool_down_starts_from_any_kept_step(tmp_path: Path) -> None:
    first = plan(steps=12, **STEADY | {"checkpoint": {"keep_every": 5, "every_steps": 2}})
    train(tmp_path / "first", first)
    kept = sorted(path.name for path in (tmp_path / "first" / "part" / "training").iterdir())
    assert kept == ["step-00000005", "step-00000010"]
    cool = {"type": "wsd", "decay_steps": 4, "warmup_steps": 2}
    settings = plan(steps=9, continue_from={"training": "first", "step": 5}, ema_decay=0.9, lr=0.05, log_every=1)
    settings = settings.model_copy(update={"schedule": WarmupStableDecay(**cool)})
    _, events = train(tmp_path / "cool", settings, {"first": tmp_path / "first" / "part"})
    rates = [event.data["values"]["train/lr"] for event in events if event.type == "metrics"]
    assert rates == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_a_step_that_is_not_finite_can_be_skipped_from_the_last_checkpoint(tmp_path: Path) -> None:
    settings = plan(checkpoint={"every_steps": 3})
    with pytest.raises(
        UserError, match=r"skip_steps: \[8\] leaves this step out, and continue_from: {training: "
    ) as stop:
        train(tmp_path / "first", settings, nan=(7, 5))
    place = str(stop.value).partition("{training: ")[2].partition("}")[0]
    again = plan(skip_steps=[8], continue_from={"training": place})
    rest, events = train(tmp_path / "rest", again, {place: Path(place)}, nan=(7, 5))
    assert "continues after step 6 of 12" in [event.data.get("message") for event in events]
    whole, _ = train(tmp_path / "whole", plan(skip_steps=[8]), nan=(7, 5))
    assert_equal(whole, rest)


def test_a_log_window_of_skipped_steps_has_no_line(tmp_path: Path) -> None:
    _, events = train(tmp_path, plan(skip_steps=[5, 6, 7, 8]))
    assert [event.data["step"] for event in events if event.type == "metrics"] == [4, 12]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optimizer": "sgd"}, "was saved by adamw: expected the same optimizer, got sgd"),
        ({"steps": 8}, "has 8 steps: expected more steps in all, got steps: 8"),
        ({"ema_decay": 0.9}, "has no average of the weights: omit ema_decay"),
        ({"continue_from": {"training": "first", "step": 3}}, "expected a step of 8, got continue_from.step: 3"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    train(tmp_path / "first", plan(steps=8, checkpoint={"keep_state": True}))
    settings = plan(**{"steps": 20, "continue_from": {"training": "first"}} | changes)
    with pytest.raises(UserError, match=line):
        train(tmp_path / "rest", settings, {"first": tmp_path / "first" / "part"})


class Half(Regression):
    """Train all layers but the first."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


def continued(folder: Path, settings: Any, task: Any, **data: Any) -> Any:
    """Continue the training in `folder / "first"`."""
    ctx = Context("toy", folder / "rest" / "part", folder / "rest" / "work", {"first": folder / "first" / "part"})
    fit(task, Samples(settings.global_batch_size, **data), settings, ctx)
    return task


def test_a_layer_that_the_first_training_kept_begins_its_average_with_its_weights(tmp_path: Path) -> None:
    first, *_ = train_toy.train(tmp_path / "first", plan(steps=8, **STEADY), task=Half())
    settings = plan(steps=12, continue_from={"training": "first"}, **STEADY | {"lr": 0.0})
    rest = continued(tmp_path, settings, Regression())
    torch.testing.assert_close(rest.net[0].weight, first.net[0].weight)
    torch.testing.assert_close(rest.net[3].weight, first.net[3].weight, atol=0.05, rtol=0)


def test_bad_samples_are_a_share_of_those_since_the_start(tmp_path: Path) -> None:
    bad = {step: [("truncated", f"shard.tar:{step}")] for step in range(40, 44)}
    train_toy.train(tmp_path / "first", plan(steps=40, checkpoint={"keep_state": True}))
    settings = plan(steps=44, continue_from={"training": "first"}, checkpoint={"every_steps": 1})
    with pytest.raises(UserError, match="4 of 36 reads failed"):
        continued(tmp_path, settings, Regression(), bad=bad)


def test_the_state_of_another_model_is_one_line_with_its_place(tmp_path: Path) -> None:
    train_toy.train(tmp_path / "first", plan(steps=8, checkpoint={"keep_state": True}))
    settings = plan(steps=12, continue_from={"training": "first"})
    with pytest.raises(UserError, match=r"^toy: .*first/part/training/step-00000008: the state is of another model"):
        continued(tmp_path, settings, Regression(norm=True))


def test_a_folder_with_a_name_of_its_own_is_no_step(tmp_path: Path) -> None:
    train_toy.train(tmp_path / "first", plan(steps=8, checkpoint={"keep_state": True}))
    kept = tmp_path / "first" / "part" / "training"
    shutil.copytree(kept / "step-00000008", kept / "step-8-copy")
    continued(tmp_path, plan(steps=12, continue_from={"training": "first"}), Regression())
    with pytest.raises(UserError, match=r"step-8-copy: expected a folder step-NUMBER"):
        checkpoint_folder(kept / "step-8-copy", None)


def test_a_state_of_another_of_timms_optimizers_does_not_fit(tmp_path: Path) -> None:
    train(tmp_path / "first", plan(steps=8, optimizer="timm", algorithm="lars", checkpoint={"keep_state": True}))
    settings = plan(steps=20, optimizer="timm", algorithm="lion", continue_from={"training": "first"})
    with pytest.raises(UserError, match="was saved by lars: expected the same optimizer, got lion"):
        train(tmp_path / "rest", settings, {"first": tmp_path / "first" / "part"})


def test_what_cannot_continue_is_known_before_the_run(tmp_path: Path) -> None:
    def check(earlier: Any, artifacts: dict[str, Path] | None = None, step: int | None = None, steps: int = 20) -> None:
        stage = plan(steps=steps, continue_from={"training": "first", "step": step})
        check_continuation(stage, Preflight({"first": earlier}, artifacts or {}))

    kept = plan(name="first", checkpoint={"keep_state": True})
    check(kept)
    with pytest.raises(UserError, match=r"first keeps no checkpoint; set checkpoint.keep_state: true there"):
        check(plan(name="first"))
    with pytest.raises(UserError, match="first has 12 steps: expected more steps in all, got 10"):
        check(kept, steps=10)
    with pytest.raises(UserError, match="first keeps no checkpoint of step 7"):
        check(plan(name="first", checkpoint={"keep_every": 5}), step=7)
    with pytest.raises(UserError, match="first trains with sgd: expected the same optimizer, got adamw"):
        check(plan(name="first", optimizer="sgd", checkpoint={"keep_state": True}))
    with pytest.raises(UserError, match=r"expected a toy\.train, got first, a eval\.probe"):
        check(Probe(name="first"))
    with pytest.raises(UserError, match=r"no checkpoint was kept there; set checkpoint.keep_state: true in that"):
        check(plan(name="first"), {"first": tmp_path})
    with pytest.raises(UserError, match=r"expected a toy\.train, got first, a eval\.probe"):
        check(Probe(name="first"), {"first": tmp_path})
    for step in (5, 10):
        (tmp_path / "training" / f"step-{step:08d}").mkdir(parents=True)
    check(plan(name="first"), {"first": tmp_path}, step=5)
    with pytest.raises(UserError, match=r"expected a step of 5, 10, got continue_from\.step: 7"):
        check(plan(name="first"), {"first": tmp_path}, step=7)
    with pytest.raises(UserError, match="first has 10 steps: expected more steps in all, got 9"):
        check(plan(name="first"), {"first": tmp_path}, steps=9)


def test_a_step_that_cannot_be_skipped_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"skip_steps: expected some of the steps 1 to 12, got \[13, 99\]"):
        plan(skip_steps=[12, 13, 99])
    stage = plan(steps=20, skip_steps=[13, 12, 5], continue_from={"training": "first"})
    first = plan(name="first", checkpoint={"keep_state": True})
    with pytest.raises(
        UserError, match=r"skip_steps: expected steps after 12, from which toy continues, got \[12, 5\]"
    ):
        check_continuation(stage, Preflight({"first": first}, {}))


def identity(store: Path, **settings: Any) -> str:
    """Return the identity of a toy training with these settings."""
    text = {"kind": "toy.train", "steps": 12, **train_toy.grouped(dict(settings))}
    known = {"toy.train": train_toy.Plan, "eval.probe": Probe}
    recipe = parse_recipe(str({"stages": [text]}), known, (), name="r", where="r.yaml")
    return make_plan(recipe, Store(store))[0].identity


TASKS = [{"kind": "eval.probe", "name": "probe"}]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({}, {"micro_batch_size": 2}, True),
        ({}, {"log_every": 3}, True),
        ({}, {"grad_checkpointing": True}, True),
        ({}, {"max_bad_fraction": 0.5}, True),
        ({}, {"checkpoint": {"every_steps": 3, "keep_state": True}}, True),
        ({}, {"runtime": {"processes": 2, "kernels": "reference"}}, True),
        ({"tasks": TASKS}, {"tasks": TASKS, "every_steps": 4}, True),
        ({}, {"lr": 0.01}, False),
        ({}, {"skip_steps": [3]}, False),
        ({}, {"tasks": TASKS}, False),
        (
            {"tasks": TASKS, "every_steps": 4, "keep_best": "val/probe/answer"},
            {"tasks": TASKS, "every_steps": 6, "keep_best": "val/probe/answer"},
            False,
        ),
    ],
)
def test_the_identity_is_of_what_decides_the_result(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], same: bool
) -> None:
    assert (identity(tmp_path, **before) == identity(tmp_path, **after)) is same


def test_settings_are_decisive_or_incidental() -> None:
    settings = plan(micro_batch_size=2)
    incidental = incidental_settings(settings)
    assert incidental["micro_batch_size"] == 2
    assert incidental["loading.max_bad_fraction"] == 0.05
    assert incidental["runtime"]["device"] == "cpu"
    decisive = decisive_settings(settings)
    assert decisive["loading"] == {"shuffle_shards": 1000}
    assert not {"micro_batch_size", "runtime", "name", "checkpoint"} & decisive.keys()


def test_a_training_that_ran_out_of_memory_goes_on_with_smaller_micro_batches(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", plan(), norm=False)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", plan(checkpoint={"every_steps": 4}), norm=False, stop=6)
    cut, events = train(tmp_path / "cut", plan(micro_batch_size=2), norm=False)
    assert "resumes after step 4 of 12" in [event.data.get("message") for event in events]
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_notes_have_each_stretch_of_settings(tmp_path: Path) -> None:
    def begin(notes: EventNotes, step: int, **settings: int) -> None:
        notes.add(Event("settings", "toy", {"step": step, "settings": settings}))

    file = tmp_path / "notes.json"
    begin(EventNotes(file), 0, micro_batch_size=8)
    begin(EventNotes(file), 20, micro_batch_size=8)
    begin(EventNotes(file), 30, micro_batch_size=4)
    begin(EventNotes(file), 30, micro_batch_size=2)
    notes = EventNotes(file)
    assert [(stretch["step"], stretch["settings"]["micro_batch_size"]) for stretch in notes.stretches] == [
        (0, 8),
        (30, 2),
    ]


def test_keep_last_bounds_the_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, plan(checkpoint={"every_steps": 2, "keep_last": 3, "keep_every": 4}))
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "work").glob("step-*"))
    assert steps == [4, 8, 10, 12]


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.6), ("sqrt", 0.2 + 0.8 * (1 - math.sqrt(0.5))), ("cosine", 0.6)]
)
def test_warmup_stable_decay(shape: str, middle: float) -> None:
    rate = WarmupStableDecay(warmup_steps=4, decay_steps=10, min_lr=0.2, shape=shape).build(1.0, 100)
    assert [rate(step) for step in (0, 3, 4, 89, 90)] == [0.25, 1.0, 1.0, 1.0, 1.0]
    assert rate(95) == pytest.approx(middle)
    assert rate(99) > 0.2
