"""`eva.video`: from any encoder to a classifier and back, exact on resume, and the heads of merged label spaces."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vfm.data import SampleDraw, TrainingData
from vfm.data.videos import VideoSource
from vfm.eval import VideoPredictor
from vfm.models import load_clip, load_state_dict, load_vision
from vfm.plugin import AllWeights, ClipCheckpoint, Context, UserError, VideoDataset, VisionCheckpoint
from vfm_eva.finetune.classifier import layer_of
from vfm_eva.video.clips import MakeClips
from vfm_eva.video.encoders import clip_tower
from vfm_eva.video.predictor import load_predictor
from vfm_eva.video.stage import build_model, load_weights
from vfm_eva.video.stages import ClipFrames, VideoAugmentation
from vfm_eva.video.task import VideoTask, video_layer_name
from video_toy import ACTIONS, make_clip, make_encoder, make_videos, settings, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    return make_videos(tmp_path_factory.mktemp("videos") / "made")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VisionCheckpoint:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def clips_of(count: int, frames: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, frames, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"video": {"attention": "divided", "time": "table"}, "grad_checkpointing": True},
        {"video": {"attention": "frame", "time": "none"}},
        {"video": {"tubelet": 2, "time": "rope"}, "trained": {"freeze_patch_embed": True}},
        {"video": {"pool": "token"}, "augmentation": {"mixup": 0.8, "cutmix": 1.0, "repeats": 2}},
        {"video": {"pool": "attentive", "attention": "frame"}, "trained": {"type": "frozen"}, "ema_decay": 0.9},
        {"video": {"attention": "divided"}, "trained": {"type": "lora", "rank": 2}},
        {"trained": {"type": "last_blocks", "blocks": 1}},
    ],
)  # fmt: skip
def test_a_trained_classifier_is_the_same_when_it_is_loaded_and_its_encoder_takes_images(
    fields: dict[str, Any], videos: VideoDataset, encoder: VisionCheckpoint, tmp_path: Path
) -> None:
    if fields.get("trained", {}).get("type") == "lora":
        pytest.importorskip("peft")
    made = train(tmp_path / "made", encoder, videos, **fields)
    predictor: VideoPredictor = load_predictor(made, CPU)
    assert predictor.class_names == list(ACTIONS)
    logits = predictor.logits(clips_of(2, 4))
    assert logits.shape == (2, 4)
    assert np.isfinite(logits).all()
    assert np.array_equal(logits, load_predictor(made, CPU).logits(clips_of(2, 4)))
    np.testing.assert_allclose(np.linalg.norm(predictor.features(clips_of(2, 4)), axis=1), 1, rtol=1e-5)
    images = load_vision(made.path / made.encoder).eval()
    assert images(torch.zeros(1, 3, 32, 32)).shape[0] == 1
    if fields.get("trained") == {"type": "frozen"}:
        before, after = (load_state_dict(one / "model.safetensors") for one in (encoder.path, made.path / "encoder"))
        assert all(torch.equal(before[name], value) for name, value in after.items() if "norm" not in name)


def test_a_killed_training_goes_on_bit_for_bit(videos: VideoDataset, encoder: VisionCheckpoint, tmp_path: Path) -> None:
    fields = {"steps": 4, "augmentation": {"mixup": 0.8, "repeats": 2}, "drop_path": 0.3}
    whole = train(tmp_path / "whole", encoder, videos, **fields)

    class KilledError(Exception):
        pass

    def kill_after_a_checkpoint(event: Any) -> None:
        if event.type == "metrics" and event.data.get("step") == 3:
            raise KilledError

    folder = tmp_path / "cut"
    (folder / "work").mkdir(parents=True)
    config = settings(**fields, checkpoint={"every_steps": 2})
    inputs = {"encoder": encoder.path, "data": videos.path}
    with pytest.raises(KilledError):
        config.run(Context("video", folder, folder / "work", inputs, kill_after_a_checkpoint))
    again = config.run(Context("video", folder, folder / "work", inputs))
    for name in ("encoder/model.safetensors", "video.safetensors"):
        one, other = (load_state_dict(artifact.path / name) for artifact in (whole, again))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_batches_do_not_depend_on_workers_and_repeats_are_clips_of_one_video(videos: VideoDataset) -> None:
    make = MakeClips(ClipFrames(num_frames=4), 32, VideoAugmentation(repeats=2, color_jitter=0.4))
    batches = {}
    for workers in (0, 2):
        data = TrainingData(VideoSource.of(videos), make, seed=1, global_batch_size=4, workers=workers)
        batches[workers] = [step[0] for step in data.steps(0, 2)]
    for one, other in zip(*batches.values(), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.inputs.clips, other.inputs.clips)
    assert batches[0][0].inputs.clips.shape == (4, 2, 4, 3, 32, 32)
    assert not torch.equal(one.inputs.clips[:, 0], one.inputs.clips[:, 1])
    sample = VideoSource.of(videos)[0]
    draws = [make(sample, SampleDraw.of(1, step, 0)).clips for step in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["ViT-Pico-8-32", "EVA02-Pico-8-32"])
def test_the_tower_of_a_clip_model_gives_the_same_features_in_timms_layout(name: str, tmp_path: Path) -> None:
    checkpoint = make_clip(tmp_path, name)
    clip = load_clip(checkpoint, CPU)
    tower: Any = clip_tower(load_clip(checkpoint)).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    visual: Any = clip.module.visual.eval()
    with torch.no_grad():
        tokens = tower.forward_features(pixels)[:, 0]
        expected = visual(pixels)
        found = tokens @ visual.proj if hasattr(visual, "proj") else clip_head(visual, tower, pixels)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def clip_head(visual: Any, tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    fresh = visual.trunk  # load_clip gave this one its own trunk, with its head
    return fresh.head(tower.forward_head(tower.forward_features(pixels), pre_logits=True))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [make_encoder, make_clip])
def test_any_encoder_starts_a_video_model(make: Callable[..., Any], videos: VideoDataset, tmp_path: Path) -> None:
    source: VisionCheckpoint | ClipCheckpoint = make(tmp_path / "source")
    made = train(tmp_path / "made", source, videos, lr=0)
    assert load_predictor(made, CPU).logits(clips_of(1, 4)).shape == (1, 4)


def test_a_second_training_takes_head_rows_by_class_name_and_interpolates_positions(
    videos: VideoDataset, encoder: VisionCheckpoint, tmp_path: Path
) -> None:
    first = train(tmp_path / "first", encoder, videos)
    other = make_videos(tmp_path / "other", 8, ("shrink", "up", "down", "left"))
    config = settings(clip={"num_frames": 8})
    checkpoint = VisionCheckpoint.load(first.path / first.encoder, verify=False)
    model = build_model(config, checkpoint, other.class_names)
    new = model.visual.head.weight.detach().clone()
    load_weights(model, checkpoint, first, other.class_names)
    old = load_state_dict(first.path / "encoder/model.safetensors")
    head = model.visual.head.weight
    for row, name in enumerate(other.class_names):
        expected = old["head.weight"][first.class_names.index(name)] if name in first.class_names else new[row]
        assert torch.equal(head[row], expected)
    torch.testing.assert_close(model.visual.fc_norm.weight, old["fc_norm.weight"])
    positions = load_state_dict(first.path / "video.safetensors")["positions"]
    assert model.positions is not None
    torch.testing.assert_close(model.positions[0], positions[0])
    torch.testing.assert_close(model.positions[1], 0.75 * positions[0] + 0.25 * positions[1])
    train(tmp_path / "second", first, other, clip={"num_frames": 8})


def test_layers_have_the_rates_of_the_blocks_they_belong_to(encoder: VisionCheckpoint) -> None:
    config = settings(video={"attention": "divided", "pool": "attentive"})
    model = build_model(config, encoder, ACTIONS)
    task = VideoTask(model, config.clip, list(ACTIONS), trained=AllWeights(layer_decay=0.5))
    scales = {id(p): group.lr_scale for group in task.parameter_groups() for p in group.params}
    names = {name.removeprefix("model."): scales[id(p)] for name, p in task.named_parameters() if p.requires_grad}
    assert names["positions"] == names["visual.patch_embed.proj.weight"] == 0.5**3
    assert names["temporal.0.attn.proj.weight"] == names["visual.blocks.0.attn.proj.weight"] == 0.5**2
    assert names["attentive.linear.weight"] == names["attentive_time"] == 1
    assert layer_of(video_layer_name("temporal.1.out.weight")) == 2
    assert {"model.positions", "model.attentive_time", "model.visual.pos_embed"} <= task.no_weight_decay()


def test_every_trained_parameter_gets_a_gradient(encoder: VisionCheckpoint) -> None:
    for video in (
        {}, {"tubelet": 2}, {"time": "table", "attention": "divided"}, {"pool": "attentive"},
        {"pool": "attentive", "time": "none"}, {"pool": "token"},
    ):  # fmt: skip
        config = settings(video=video)
        task = VideoTask(build_model(config, encoder, ACTIONS), config.clip, list(ACTIONS))
        task.model(torch.randn(2, 4, 3, 32, 32)).square().sum().backward()
        assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == [], video


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": {"num_frames": 5}, "video": {"tubelet": 2}}, "must be a multiple of video.tubelet, 2"),
        ({"video": {"time": "rope", "attention": "frame"}}, "needs attention: joint"),
        ({"augmentation": {"mixup": 0.8}, "global_batch_size": 3}, "expected even micro-batches, got 3"),
        (
            {"augmentation": {"mixup": 0.8}, "global_batch_size": 4, "runtime": {"processes": 4}},
            "expected even micro-batches, got 1",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**fields)


def test_wrong_encoders_and_damaged_classifiers_are_one_line(
    videos: VideoDataset, encoder: VisionCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"multiple of the patch size 8, got 36|at 36"):
        train(tmp_path / "a", encoder, videos, image_size=36)
    made = train(tmp_path / "b", encoder, videos)
    shutil.copy(made.path / "encoder/model.safetensors", made.path / "video.safetensors")
    with pytest.raises(UserError, match=r"video.safetensors: .* is missing, unknown or of another shape"):
        load_predictor(made, CPU)
