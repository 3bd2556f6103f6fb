"""The estimate of a training's memory is that of the training which then runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eva_toy import context, make_teacher, stage
from vfm.data.synthetic.stages import ShapesClasses, ShapesScenes
from vfm.models import build_vision, get_clip_config, save_vision
from vfm.plugin import (
    ClipCheckpoint,
    Event,
    Pool,
    Preflight,
    Training,
    VisionCheckpoint,
    load_function,
)
from vfm.train import LiveBytes
from vfm_eva import EvaFinetune
from vfm_eva.dense.detect.stages import EvaDetect
from vfm_eva.dense.segment.stages import EvaSegment
from vfm_eva.pretrain.estimate import eva_pretrain_cost
from vfm_eva.video.stages import EvaVideo
from video_toy import make_videos

STUDENT_64 = {"architecture": "eva02_nano_patch4_32", "depth": 4, "img_size": 64}
LARGER = {"model": {"architecture": "eva02_nano_patch4_32", "depth": 4}, "global_batch_size": 32, "steps": 3}


def measured(config: Training, folder: Path, **inputs: Any) -> int:
    """Run the training; return the peak of live bytes in its second step (the first counts operations, too)."""
    counter, peaks = LiveBytes(), [0]

    def listen(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 1:
            counter.peak = counter.now
        if event.type == "metrics" and event.data["step"] == 2:
            peaks.append(counter.peak)

    with counter:
        config.run(context(folder, listen, **inputs))
    return peaks[-1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"grad_checkpointing": True}, {"micro_batch_size": 16, "precision": "amp_bf16", "ema_decay": 0.9}],
    ids=["plain", "checkpointing", "micro-batches"],
)
def test_memory_is_within_15_percent_of_what_a_training_takes(
    settings: dict[str, Any], tmp_path: Path, pool: Pool
) -> None:
    config = get_clip_config("ViT-Pico-8-32")
    text = {**config["text_cfg"], "vocab_size": 64}  # a small text tower, which is never moved to the device
    teacher = make_teacher(tmp_path / "teacher", {**config, "text_cfg": text})
    cost = eva_pretrain_cost(stage(**LARGER, **settings), Preflight({}, {"pool": pool.path, "teacher": teacher.path}))
    assert cost.memory
    peak = measured(stage(**LARGER, **settings), tmp_path / "run", pool=pool, teacher=teacher)
    assert cost.memory.activations > 0.2 * peak
    assert cost.memory.total == pytest.approx(peak, rel=0.15)


COMMON: dict[str, Any] = {
    "name": "tuned",
    "encoder": "encoder",
    "data": "data",
    "steps": 3,
    "global_batch_size": 16,
    "log_every": 1,
    "runtime": {"device": "cpu"},
}
WORLD = {"image_size": 64, "shapes": ["circle", "square", "star"], "colours": ["red", "blue"]}
DETECTOR = {
    "image_size": 64,
    "channels": 32,
    "proposals": {"num_convs": 1, "num_samples": 64, "before_nms": 100, "num_proposals": 40},
    "cascade": {"num_rois": 32, "num_convs": 1, "hidden": 64, "mask_convs": 1},
}
CASES: dict[str, tuple[type[Training], dict[str, Any]]] = {
    "finetune": (EvaFinetune, {"augmentation": {"mixup": 0.8, "erasing": 0.2}}),
    "finetune-checkpointing": (EvaFinetune, {"grad_checkpointing": True, "micro_batch_size": 8}),
    "video": (EvaVideo, {"clip": {"num_frames": 4}, "global_batch_size": 4}),
    "queries": (EvaSegment, {"head": {"type": "queries", "num_queries": 8, "loss": {"num_points": 512}}}),
    "linear": (EvaSegment, {"head": {"type": "linear"}, "precision": "amp_bf16"}),
    "detect": (EvaDetect, {"detector": DETECTOR, "global_batch_size": 4}),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VisionCheckpoint:
    model = build_vision({"architecture": "eva02_nano_patch4_32", "depth": 4}, image_size=64, num_classes=0, seed=0)
    return save_vision(model, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Training], Any]:
    root = tmp_path_factory.mktemp("data")
    labeled = ShapesClasses.model_validate({"name": "data", "world": WORLD, "num_samples": 48})
    scenes = ShapesScenes.model_validate({"name": "data", "world": WORLD, "num_samples": 24, "max_objects": 3})
    annotated = scenes.run(context(root / "scenes"))
    return {
        EvaFinetune: labeled.run(context(root / "labeled")),
        EvaVideo: make_videos(root / "videos"),
        EvaSegment: annotated,
        EvaDetect: annotated,
    }


@pytest.mark.parametrize("name", CASES)
def test_memory_of_trainings_with_labels_is_within_15_percent_of_what_they_take(
    name: str, tmp_path: Path, encoder: VisionCheckpoint, data: dict[type[Training], Any]
) -> None:
    kind, settings = CASES[name]
    config, inputs = kind.model_validate(COMMON | settings), {"encoder": encoder, "data": data[kind]}
    cost = load_function(config.costs)(config, Preflight({}, {name: made.path for name, made in inputs.items()}))
    assert cost.memory
    assert not cost.unknown
    assert cost.memory.total == pytest.approx(measured(config, tmp_path / "run", **inputs), rel=0.15)


def test_memory_of_a_video_training_on_a_clip_models_tower_is_within_15_percent_of_what_it_takes(
    tmp_path: Path, teacher: ClipCheckpoint, data: dict[type[Training], Any]
) -> None:
    kind, settings = CASES["video"]
    config, inputs = kind.model_validate(COMMON | settings), {"encoder": teacher, "data": data[kind]}
    cost = load_function(config.costs)(config, Preflight({}, {name: made.path for name, made in inputs.items()}))
    assert cost.memory
    assert cost.memory.total == pytest.approx(measured(config, tmp_path / "run", **inputs), rel=0.15)


@pytest.mark.parametrize("name", CASES)
def test_costs_follow_the_stages_that_make_an_encoder_and_assume_what_is_not_known_of_the_data(name: str) -> None:
    kind, settings = CASES[name]
    config, first = kind.model_validate(COMMON | settings), stage(name="encoder", model=STUDENT_64)
    cost = load_function(config.costs)(config, Preflight({"encoder": first}, {}))
    assert cost.memory
    assert cost.unknown == ("the classes of data, for which 1000 are assumed",)
    assert load_function(config.costs)(config, Preflight({}, {})).unknown == ("the encoder encoder",)


def test_a_teacher_that_is_not_known_yet_is_unknown() -> None:
    assert eva_pretrain_cost(stage(), Preflight({}, {})).unknown == ("the teacher teacher",)
