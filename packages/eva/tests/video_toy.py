"""Small videos of the moving world and a small encoder, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vfm.data.synthetic.stages import ShapesVideos
from vfm.models import build_clip, build_vision, save_clip, save_vision
from vfm.plugin import (
    ClipCheckpoint,
    Context,
    Preflight,
    VideoClassifier,
    VideoDataset,
    VisionCheckpoint,
)
from vfm_eva.video.stages import EvaVideo

ACTIONS = ("left", "right", "grow", "shrink")


def make_videos(folder: Path, count: int = 16, actions: tuple[str, ...] = ACTIONS, seed: int = 0) -> VideoDataset:
    (folder / "work").mkdir(parents=True)
    config = ShapesVideos(
        kind="shapes.videos",
        name="videos",
        world={"image_size": 32, "shapes": ["arrow", "star"], "colours": ["red", "blue"]},  # type: ignore[arg-type]
        num_samples=count,
        num_frames=8,
        actions=actions,  # type: ignore[arg-type]
        seed=seed,
    )
    made = config.run(Context("videos", folder, folder / "work", {}))
    assert isinstance(made, VideoDataset)
    return made


def make_encoder(folder: Path, name: str = "eva02_pico_patch8_32", **more: Any) -> VisionCheckpoint:
    return save_vision(build_vision({"architecture": name, **more}, seed=0), folder)


def make_clip(folder: Path, name: str = "ViT-Pico-8-32") -> ClipCheckpoint:
    return save_clip(build_clip(name, seed=0), folder)


def train(folder: Path, encoder: Any, data: VideoDataset, **fields: Any) -> VideoClassifier:
    config = settings(**fields)
    config.preflight(Preflight({}, {"encoder": encoder.path, "data": data.path}))
    (folder / "work").mkdir(parents=True, exist_ok=True)
    made = config.run(Context("video", folder, folder / "work", {"encoder": encoder.path, "data": data.path}))
    assert isinstance(made, VideoClassifier)
    return made


def settings(**fields: Any) -> EvaVideo:
    fields = {
        "clip": {"num_frames": 4}, "steps": 2, "global_batch_size": 4, "log_every": 1,
        "augmentation": {"flip": 0, "grey": 0, "color_jitter": 0}, "runtime": {"device": "cpu"}, **fields,
    }  # fmt: skip
    return EvaVideo(kind="eva.video", name="video", encoder="encoder", data="data", **fields)
