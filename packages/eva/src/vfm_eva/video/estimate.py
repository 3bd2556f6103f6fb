"""Cost estimate of `eva.video`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vfm.models import ClipModel, planned_encoder, save_vision_config
from vfm.plugin import Cost, Preflight, VideoClassifier, VisionCheckpoint
from vfm_eva.finetune.estimate import Planned, estimate_with_encoder, images, known_classes, zeros
from vfm_eva.video.clips import VideoClips
from vfm_eva.video.encoders import clip_tower, image_checkpoint
from vfm_eva.video.stage import build_model, video_task
from vfm_eva.video.stages import EvaVideo


def eva_video_cost(config: EvaVideo, ctx: Preflight) -> Cost:
    """Estimate the cost of training a video classifier. It is unknown until the encoder exists."""
    names = known_classes(ctx, config.data)

    def plan(encoder: VisionCheckpoint) -> Planned:
        task = video_task(config, build_model(config, encoder, names), names)
        side = task.preprocess.image_size
        frames = config.clip.num_frames
        repeats = config.augmentation.repeats

        def inputs(number: int) -> VideoClips:
            clips = images(number * repeats * frames, side).view(number, repeats, frames, 3, side, side)
            return VideoClips(clips, zeros(number))

        return task, inputs

    with TemporaryDirectory() as folder:
        return estimate_with_encoder(config, ctx, plan, _image_encoder(config, ctx, Path(folder)))


def _image_encoder(config: EvaVideo, ctx: Preflight, folder: Path) -> VisionCheckpoint | None:
    """Find the encoder of a video model.

    A CLIP model's encoder is written to a folder without weights. Other models have none.
    """
    source = ctx.artifact(config.encoder)
    if isinstance(source, VideoClassifier):
        return image_checkpoint(source, folder)
    model = planned_encoder(ctx, config.encoder)  # type: ignore[arg-type]
    if not isinstance(model, ClipModel):
        return None
    with torch.device("meta"):
        return save_vision_config(clip_tower(model), folder)
