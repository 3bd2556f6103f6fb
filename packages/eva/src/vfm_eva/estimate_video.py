"""The cost of `eva.video` before it runs."""

from __future__ import annotations

from vfm.plugin import Cost, Preflight, VideoClassifier, VisionCheckpoint
from vfm_eva.estimate_labeled import Planned, estimate_with_encoder, images, known_classes, zeros
from vfm_eva.stages_video import EvaVideo
from vfm_eva.video.clips import VideoClips
from vfm_eva.video.encoders import image_checkpoint
from vfm_eva.video.stage import build_model, video_task


def eva_video_cost(config: EvaVideo, ctx: Preflight) -> Cost:
    """Return the cost of a training; unknown if its encoder is not known yet, or is a CLIP model."""
    names, source = known_classes(ctx, config.data), ctx.artifact(config.encoder)

    def plan(encoder: VisionCheckpoint) -> Planned:
        task = video_task(config, build_model(config, encoder, names), names)
        side, frames, repeats = task.preprocess.image_size, config.clip.num_frames, config.augmentation.repeats

        def inputs(number: int) -> VideoClips:
            clips = images(number * repeats * frames, side).view(number, repeats, frames, 3, side, side)
            return VideoClips(clips, zeros(number))

        return task, inputs

    of_videos = image_checkpoint(source, source.path) if isinstance(source, VideoClassifier) else None
    return estimate_with_encoder(config, ctx, plan, of_videos)
