"""Sharded training starts from the model that one process would build, which only rank 0 holds."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clip_world import EVA, VIT, make_pool, plan, run_in_group, run_stage
from vfm.interfaces import LeftToFirst
from vfm.models import build_clip, build_vision, save_clip, save_vision
from vfm.models.stored_weights import mapped_pages
from vfm.plugin import Artifact, ClipCheckpoint, Context, Pool, Runtime, TrainingRuntime, VisionCheckpoint
from vfm.train import distributed, weights_from_first
from vfm.train.parallel.sharded import Sharded
from vfm_clip.task import ClipTask
from vfm_clip.train import initial_model

LORA = {"trained": {"type": "lora", "rank": 2}}
STARTS: dict[str, dict[str, Any]] = {
    "random": {"model": VIT},
    "random timm": {"model": EVA},
    "bias": {"model": VIT, "loss": {"type": "siglip"}},
    "start": {"model": None, "init": "start"},
    "another size": {"model": None, "init": "start", "image_size": 32},
    "towers": {"model": EVA, "init_vision": "eva", "init_text": "words"},
    "lora": {"model": None, "init": "start", "vision": LORA, "text": LORA},
}
SETTINGS: dict[str, Any] = {"model": VIT, "steps": 3, "lr": 0.1, "optimizer": {"type": "sgd"}, "ema_decay": 0.5}
FSDP = {"device": "cpu", "parallel": "fsdp"}
KINDS = {
    "start": ClipCheckpoint,
    "large": ClipCheckpoint,
    "words": ClipCheckpoint,
    "eva": VisionCheckpoint,
    "pool": Pool,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("inputs")
    return {
        "start": save_clip(build_clip(VIT, seed=3), root / "start"),
        "large": save_clip(build_clip({**VIT, "text_cfg": {**VIT["text_cfg"], "width": 128}}, seed=5), root / "large"),
        "words": save_clip(build_clip(EVA, seed=4), root / "words"),
        "eva": save_vision(build_vision("eva02_pico_patch8_32", num_classes=0, seed=9), root / "eva"),
        "pool": make_pool(root / "pool"),
    }


def start(folder: Path, inputs: dict[str, Artifact]) -> None:
    """Compare each initial model, received from rank 0, with the one that this process builds alone."""
    ctx = Context("clip", folder, folder / "work", {name: artifact.path for name, artifact in inputs.items()})
    equal = {}
    with distributed(Runtime(device="cpu")) as world:
        for name, changes in STARTS.items():
            config = plan(**changes, runtime=FSDP)
            alone, *_ = initial_model(config, ctx)
            with weights_from_first(config.runtime):
                clip, towers, _ = initial_model(config, ctx)
            task = ClipTask(clip, loss=config.loss, towers=towers)
            assert all(param.is_meta == (world.rank > 0) for param in task.parameters())
            assert clip.preprocess == alone.preprocess
            trained = {name: param.requires_grad for name, param in clip.module.named_parameters()}
            assert trained == {name: param.requires_grad for name, param in alone.module.named_parameters()}
            placed = Sharded(task, world, TrainingRuntime.model_validate(FSDP))
            placed.wrap(None)
            with placed.whole():
                ours, theirs = clip.module.state_dict(), alone.module.state_dict()
                equal[name] = ours.keys() == theirs.keys() and all(
                    torch.equal(ours[key], theirs[key]) for key in theirs
                )
    (folder / f"equal-{world.rank}.json").write_text(json.dumps(equal))


def read(folder: Path, inputs: dict[str, Artifact]) -> None:
    """Count the bytes of the start that this process touches, with weights as loaded and with one that is changed."""
    file = inputs["large"].path / "open_clip_model.safetensors"
    ctx = Context("clip", folder, folder / "work", {name: artifact.path for name, artifact in inputs.items()})
    config = plan(model=None, init="large", runtime=FSDP)
    results = []
    with distributed(Runtime(device="cpu")) as world:
        for change in (0.0, 1.0):
            alone, *_ = initial_model(config, ctx)
            alone.module.text_projection.data[0] += change
            expected = {name: value.clone() for name, value in alone.module.state_dict().items()}
            del alone
            before = touched(file)
            with weights_from_first(config.runtime):
                clip, towers, _ = initial_model(config, ctx)
            if change:
                clip.module.text_projection.data[0] += change  # of rank 0: the others have no values
            placed = Sharded(ClipTask(clip, loss=config.loss, towers=towers), world, config.runtime)
            placed.wrap(None)
            count = touched(file) - before
            with placed.whole():
                ours = clip.module.state_dict()
                equal = all(torch.equal(ours[name], expected[name]) for name in expected)
            results.append([count / file.stat().st_size, equal])
            del placed, clip, towers
    (folder / f"read-{world.rank}.json").write_text(json.dumps(results))


def touched(file: Path) -> int:
    """Count the bytes of a file that its maps in this process have in memory."""
    return 1024 * sum(size for kind, size in mapped_pages(file) if kind == "Rss:")


def train(folder: Path, inputs: dict[str, Artifact]) -> None:
    """Run the stage in all processes, of which the first exports the model."""
    with distributed(Runtime(device="cpu")) as world:
        root = folder / ("sharded" if world.is_main else "scratch")
        with suppress(LeftToFirst):
            run_stage(plan(**SETTINGS, runtime=FSDP), root, work=folder / "work", pool=inputs["pool"])


@pytest.mark.slow
def test_initial_models_are_bit_for_bit_what_one_process_builds(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    run_in_group(__file__, "start", tmp_path, inputs)
    for rank in range(2):
        assert json.loads((tmp_path / f"equal-{rank}.json").read_text()) == dict.fromkeys(STARTS, True)


@pytest.mark.slow
def test_each_process_reads_its_rows_of_the_start_from_the_file(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    run_in_group(__file__, "read", tmp_path, inputs)
    for rank in range(2):
        (share, equal), (share_of_changed, changed_equal) = json.loads((tmp_path / f"read-{rank}.json").read_text())
        assert equal
        assert changed_equal
        assert 0.45 < share < 0.65  # pages are mapped in large pieces
        assert share_of_changed > 0.9 if rank == 0 else share_of_changed < 0.1


@pytest.mark.slow
def test_the_stage_trains_and_exports_as_one_process_does(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    run_in_group(__file__, "train", tmp_path, inputs)
    alone, _ = run_stage(plan(**SETTINGS), tmp_path / "alone", pool=inputs["pool"])
    file = "open_clip_model.safetensors"
    torch.testing.assert_close(load_file(tmp_path / "sharded" / "part" / file), load_file(alone.path / file))
    assert not (tmp_path / "scratch" / "part" / file).exists()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {"start": start, "read": read, "train": train}[sys.argv[1]]
    paths = json.loads(sys.argv[3])
    os.environ.setdefault("LOCAL_WORLD_SIZE", "2")
    work(Path(sys.argv[2]), {name: KINDS[name].load(path) for name, path in paths.items()})
