"""FSDP2 trains as DDP and as one process do, and its checkpoints go on in any number of processes, sharded or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train_toy import Deep, Probe, Samples, in_processes, plan, train
from vfm.plugin import Artifact, Context, Training, TrainingRuntime
from vfm.train.checkpoint.shards import read_shards
from vfm.train.parallel.blocks import blocks

COMMON: dict[str, Any] = {
    "lr": 0.01,
    "log_every": 1,
    "grad_clip_norm": 0.5,
    "ema_decay": 0.9,
    "checkpoint": {"every_steps": 3},
}
EVALUATED = {"tasks": [Probe(name="probe", at=-1.0)], "every_steps": 2, "keep_best": "val/answer"}
FSDP = {"device": "cpu", "parallel": "fsdp"}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "best": {**EVALUATED, "micro_batch_size": 2, "log_every": 4},
    "evaluated": {"tasks": [Probe(name="probe", at=-1.0)], "every_steps": 5},
    "lamb": {"optimizer": "lamb", "micro_batch_size": 1},
    "lars": {"optimizer": "timm", "algorithm": "lars"},
}


def job(folder: str, settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made = plan(**{**COMMON, **settings, "max_bad_fraction": 0.5}).model_dump(mode="json")
    return {"folder": folder, "plan": made, "deep": True, **changes}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Train in one process, in two and in four, and across these numbers; return the folder of all."""
    root = tmp_path_factory.mktemp("root")
    fsdp, hybrid = {"runtime": FSDP}, {"runtime": {**FSDP, "shard_degree": 2}}
    in_processes(
        2,
        root,
        [
            job("fsdp2-plain", fsdp),
            *(job(f"fsdp2-{name}", {**RUNS[name], **fsdp}) for name in ("best", "lars")),
            job("fsdp2-evaluated", {**RUNS["evaluated"], "runtime": {**FSDP, "gather_for_evaluation": False}}),
            job("cut", fsdp, terminated_rank=1),
            job("cut", fsdp),
            job("differing", fsdp, terminated_rank=1),
            job("differing", fsdp, damaged_for_rank=1),
            job("full", fsdp, full_for_rank=1),
            job("full", fsdp),
            job("resharded", fsdp, terminated_rank=1),
            job("to-ddp", fsdp, terminated_rank=0),
            job("to-ddp", {}),
            job("to-fsdp", {}, terminated_rank=0),
            job("to-fsdp", fsdp),
            job("ddp-resharded", {}, terminated_rank=1),
            job("to-ddp4", fsdp, terminated_rank=1),
        ],
    )
    for name, settings in RUNS.items():
        alone(root / f"one-{name}", **settings)
    for name in ("resharded", "ddp-resharded"):
        alone(root / name, data=Samples(bad=BAD_OF_CHILD, stop=10))
    in_processes(
        4,
        root,
        [
            job("hsdp4-lamb", {**RUNS["lamb"], **hybrid}),
            job("resharded", fsdp),
            job("ddp-resharded", fsdp),
            job("to-ddp4", {}),
        ],
    )
    return root


BAD_OF_CHILD: dict[int, Any] = {2: [("truncated", "shard.tar:5")]}  # as every child has it


def alone(folder: Path, data: Samples | None = None, **settings: Any) -> None:
    made = plan(**{**COMMON, **settings, "max_bad_fraction": 0.5})
    try:
        task, *_ = train(folder, made, task=Deep(), data=data or Samples(bad=BAD_OF_CHILD))
        save_file(task.state_dict(), folder / "final.safetensors")
    except KeyboardInterrupt:
        assert data


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(folder: Path, expected: Path) -> None:
    ours, theirs = lines(folder), lines(expected)
    assert len(ours) == len(theirs)
    for mine, line in zip(ours, theirs, strict=True):
        assert mine.pop("split") == line.pop("split")
        assert mine.pop("eval", "") == line.pop("eval", "")
        if "train/loss" in line:
            assert mine["train/loss"] == pytest.approx(line["train/loss"], rel=2e-6, abs=1e-6)
        assert mine == pytest.approx(line, rel=1e-5, abs=1e-5)  # means of outputs near 0 vary more than the loss
    torch.testing.assert_close(final(folder), final(expected), rtol=1e-5, atol=1e-5)


def final(folder: Path) -> dict[str, Tensor]:
    """Return the weights that the training ended with, as its first process has them."""
    return load_file(folder / "final.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fsdp2-plain", "one-plain"),
        ("fsdp2-best", "one-best"),
        ("fsdp2-lars", "one-lars"),
        ("fsdp2-evaluated", "one-evaluated"),
        ("hsdp4-lamb", "one-lamb"),
        ("resharded", "one-plain"),
        ("to-ddp", "one-plain"),
        ("to-fsdp", "one-plain"),
        ("ddp-resharded", "one-plain"),
        ("to-ddp4", "one-plain"),
    ],
)
def test_sharded_processes_give_the_losses_scores_and_weights_of_one(root, name, expected):
    assert_same_training(root / name, root / expected)


@pytest.mark.slow
def test_resuming_is_exact_also_past_a_checkpoint_that_one_process_finds_damaged(root):
    first, second = ((root / "cut" / f"stopped-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "stopped by SIGTERM after step 6" in first
    expected = root / "fsdp2-plain"
    for folder in ("cut", "differing", "full"):
        for file in ("part/metrics.jsonl", "final.safetensors"):
            assert (root / folder / file).read_bytes() == (expected / file).read_bytes()


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_ends_all_with_the_folder_in_the_message(root):
    for rank in range(2):
        message = (root / "full" / f"stopped-{rank}.txt").read_text()
        assert message == f"[Errno 27] File too large: '{root}/full/work/unfinished-step-00000006/shards'"


@pytest.mark.slow
def test_each_process_writes_a_part_of_every_weight_and_of_its_state(root):
    folder = root / "fsdp2-plain" / "work" / "step-00000012"
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.json", "meta.json", "shards", "state"]
    first, second = (load_file(file) for file in sorted((folder / "shards").iterdir()))
    assert first["model/net.0.weight"].shape == second["model/net.0.weight"].shape == (8, 4)
    assert first["optimizer/net.0.weight/exp_avg"].shape == first["ema/net.0.weight"].shape == (8, 4)
    assert sum(len(part.get("model/net.2.weight", ())) for part in (first, second)) == 1  # it has one row
    whole = read_shards(folder / "shards", {})
    torch.testing.assert_close(whole["ema"]["net.0.weight"], final(root / "fsdp2-plain")["net.0.weight"])
    assert set(whole["model"]) == set(Deep().state_dict())


def test_blocks_are_the_outermost_lists_of_equal_modules_without_shared_weights():
    deep = Deep()
    assert blocks(deep) == [deep.net[1][0], deep.net[1][1]]
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    assert blocks(tied) == [tied[2]]


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"shard_degree": 2}, "shard_degree needs parallel: fsdp"),
        ({"parallel": "fsdp", "processes": 4, "shard_degree": 3}, "expected a divisor of processes, 4, got 3"),
        ({"gather_for_evaluation": False}, "gather_for_evaluation: false needs parallel: fsdp"),
        ({"parallel": "fsdp", "pad_widths": True}, "pad_widths: true needs parallel: ddp"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_line(runtime, message):
    with pytest.raises(ValidationError, match=message):
        TrainingRuntime.model_validate(runtime)


def test_the_best_weights_cannot_be_found_block_by_block():
    with pytest.raises(ValidationError, match="keep_best needs whole weights"):
        plan(**EVALUATED, runtime={**FSDP, "gather_for_evaluation": False})


@pytest.mark.parametrize("algorithm", ["muon", "adafactorbv"])
def test_optimizers_that_need_whole_weights_are_refused(algorithm):
    with pytest.raises(ValidationError, match=f"optimizer: {algorithm} needs whole weights: set runtime.parallel: ddp"):
        plan(optimizer="timm", algorithm=algorithm, runtime=FSDP)


def test_a_training_that_was_not_shown_to_shard_is_refused():
    class Other(Training):
        kind: Literal["toy.other"] = "toy.other"

        def run(self, ctx: Context) -> Artifact:
            raise AssertionError

    with pytest.raises(ValidationError, match=r"runtime.parallel: expected ddp, got fsdp, which toy.other does not"):
        Other.model_validate({"name": "other", "steps": 1, "runtime": FSDP})
