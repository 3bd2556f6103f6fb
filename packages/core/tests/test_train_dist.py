"""Two processes on gloo must compute the same as one, stop together and resume together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from train_toy import BAD, MainProbe, Probe, Regression, Samples, in_processes, plan, train
from vfm.train import seed_everything

COMMON = {"log_every": 1, "grad_clip_norm": 0.5, "ema_decay": 0.9, "max_bad_fraction": 0.5}
EVERY_3 = {"checkpoint": {"every_steps": 3}}
PROBES = [Probe(name="probe"), MainProbe(name="alone")]


def settings(**changes: Any) -> dict[str, Any]:
    return plan(**{**COMMON, **changes}).model_dump(mode="json")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Run several trainings in one pair of processes, since starting processes is slow; return their folder."""
    root = tmp_path_factory.mktemp("two")
    jobs = [
        {"folder": "whole", "plan": settings()},
        {"folder": "micro", "plan": settings(micro_batch_size=2, log_every=4)},
        {"folder": "nan", "plan": settings(), "nan": [7, 6]},
        {"folder": "unbroken", "plan": settings(), "dropout": 0.3},
        {"folder": "evaluated", "plan": settings(tasks=[Probe(name="probe")], every_steps=5), "dropout": 0.3},
        {"folder": "norm", "plan": settings(), "norm": True},
        {"folder": "norm-evaluated", "plan": settings(tasks=PROBES, every_steps=5), "norm": True},
        {"folder": "cut", "plan": settings(), "dropout": 0.3, "terminated_rank": 1},
        {"folder": "cut", "plan": settings(), "dropout": 0.3},
        {"folder": "late", "plan": settings(log_every=100), "dropout": 0.3, "terminated_rank": 1, "reads_wait": True},
        {"folder": "late", "plan": settings(log_every=100), "dropout": 0.3},
        {"folder": "differing", "plan": settings(**EVERY_3), "dropout": 0.3, "terminated_rank": 1},
        {"folder": "differing", "plan": settings(**EVERY_3), "dropout": 0.3, "damaged_for_rank": 1},
    ]
    in_processes(2, root, jobs)
    return root


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "changes"), [("whole", {}), ("micro", {"micro_batch_size": 2, "log_every": 4})])
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path, two, name, changes):
    single = plan(**{**COMMON, **changes})
    train(tmp_path, single, data=Samples(bad={2: BAD[5]}))
    for expected, line in zip(lines(tmp_path), lines(two / name), strict=True):
        assert expected.pop("split") == line.pop("split") == "train"
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for file in ("model.safetensors", "state/ema.safetensors", "state/optimizer.safetensors"):
        a, b = (load_file(folder / "work" / "step-00000012" / file) for folder in (tmp_path, two / name))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_nan_in_the_second_process_stops_both_with_the_same_message(two):
    first, second = ((two / "nan" / f"stopped-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("toy: the loss is not finite at step 8;")
    assert first.endswith("samples: step7-sample4, step7-sample5, step7-sample6, step7-sample7")


def test_sigterm_to_one_process_stops_both_at_a_checkpoint_and_they_resume_exactly(two):
    first, second = ((two / "cut" / f"stopped-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "stopped by SIGTERM after step 6" in first
    for file in ("part/metrics.jsonl", "work/step-00000012/model.safetensors", "work/step-00000012/meta.json"):
        assert (two / "cut" / file).read_bytes() == (two / "unbroken" / file).read_bytes()


def test_sigterm_between_two_log_lines_stops_a_step_later_where_reads_wait_for_the_device(two):
    first, second = ((two / "late" / f"stopped-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "stopped by SIGTERM after step 7" in first
    file = "work/step-00000012/model.safetensors"
    assert (two / "late" / file).read_bytes() == (two / "unbroken" / file).read_bytes()


def test_processes_resume_from_one_checkpoint_although_one_of_them_finds_the_newest_damaged(two):
    assert "stopped by SIGTERM after step 6" in (two / "differing" / "stopped-0.txt").read_text()
    assert (two / "differing" / "damaged-work" / "step-00000006").is_dir()
    for file in ("part/metrics.jsonl", "work/step-00000012/model.safetensors", "work/step-00000012/meta.json"):
        assert (two / "differing" / file).read_bytes() == (two / "unbroken" / file).read_bytes()


@pytest.mark.parametrize(("name", "norm"), [("evaluated", False), ("norm-evaluated", True)])
def test_processes_share_an_evaluation_of_the_averaged_weights_and_the_first_process_buffers(two, name, norm):
    saved = two / name / "work" / "step-00000012"
    task = Regression(norm=norm)
    weights = {**load_file(saved / "model.safetensors"), **load_file(saved / "state" / "ema.safetensors")}
    task.load_state_dict(weights)
    task.eval()
    with torch.no_grad():
        at, second, third = (float(task.net(torch.full((1, 4), point))) for point in (1.0, 0.25, -2.0))
    scores = {"answer": at, "answer/half": at / 2, "answer/others": second - third}
    expected = {"probe": "val/", **({"alone": "val/alone/"} if norm else {})}
    assert [line for line in lines(two / name) if line["split"] == "val" and line["step"] == 12] == [
        {"step": 12, "samples": 96, "split": "val", "eval": name}
        | {f"{prefix}{metric}": value for metric, value in scores.items()}
        for name, prefix in expected.items()
    ]


def test_evaluations_change_no_process_that_has_batch_norms(two):
    evaluated = lines(two / "norm-evaluated")
    assert [line for line in evaluated if line["split"] == "train"] == lines(two / "norm")
    file = "work/step-00000012/model.safetensors"
    assert (two / "norm-evaluated" / file).read_bytes() == (two / "norm" / file).read_bytes()


def test_evaluations_run_once_and_change_neither_process(two):
    evaluated = lines(two / "evaluated")
    assert [line["step"] for line in evaluated if line["split"] == "val"] == [5, 10, 12]
    assert [line for line in evaluated if line["split"] == "train"] == lines(two / "unbroken")
    file = "work/step-00000012/model.safetensors"
    assert (two / "evaluated" / file).read_bytes() == (two / "unbroken" / file).read_bytes()


def test_bad_samples_of_any_process_are_counted(two):
    meta = json.loads((two / "whole" / "work" / "step-00000012" / "meta.json").read_text())
    assert meta["skipped"] == {"before": 0, "reads": 1, "counts": {"truncated": 1}, "samples": [list(BAD[5][0])]}


def test_draws_differ_by_step_micro_batch_and_rank_and_repeat():
    def draw(*where: int) -> float:
        seed_everything(*where)
        return float(torch.rand(()))

    draws = {where: draw(*where) for where in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]}
    assert len(set(draws.values())) == 5
    assert all(draw(*where) == value for where, value in draws.items())
