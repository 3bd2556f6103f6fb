"""The check of `eval.video` before a run. This module does not import torch."""

from __future__ import annotations

from vfm.base import UserError, did_you_mean
from vfm.eval.video.stages import VideoEvaluation
from vfm.interfaces import Preflight


def check_video_evaluation(config: VideoEvaluation, ctx: Preflight) -> None:
    """Check that the models have all classes of the data, if both already exist."""
    data = ctx.artifact(config.data)
    for ref in config.models:
        model = ctx.artifact(ref)
        if not data or not model:
            continue
        missing = [name for name in data.class_names if name not in model.class_names]
        if missing:
            hint = did_you_mean(missing[0], model.class_names)
            raise UserError(f"{ref}: its head has no class {missing[0]!r} of {config.data}{hint}")
