"""The cost of `clip.train` before it runs, for `vfm plan --estimate`."""

from __future__ import annotations

import torch

from vfm.models import blueprint, planned_clip
from vfm.plugin import Cost, Preflight
from vfm.train import estimate_training, prepare_towers
from vfm_clip.data import ClipInputs
from vfm_clip.stages import ClipTrain
from vfm_clip.task import ClipTask
from vfm_clip.towers import trained_towers
from vfm_clip.train import init_logit_bias


def clip_train_cost(config: ClipTrain, ctx: Preflight) -> Cost:
    """Estimate the cost of a training run. It is unknown if the initial model is not known yet."""
    teacher_ref = config.loss.teacher_ref
    noise = config.vision.noise
    if config.init:
        clip = planned_clip(ctx, config.init, config.image_size, noise)
    else:
        clip = blueprint(config.model, config.image_size, noise=noise)
    teacher = planned_clip(ctx, teacher_ref) if teacher_ref else None
    if clip is None or (teacher_ref and teacher is None):
        unknown_ref = config.init if clip is None else teacher_ref
        return Cost(unknown=(f"the model of {unknown_ref}",))
    with torch.device("meta"):
        if config.grad_checkpointing:
            clip.module.set_grad_checkpointing()  # type: ignore[operator]
        prepare_towers(trained_towers(clip, config.vision, config.text))
        bias = config.loss.logit_bias
        if bias:
            init_logit_bias(clip, bias)
        task = ClipTask(clip, loss=config.loss, teacher=teacher, train_logit_scale=not config.logit_scale.lock)
    side = clip.preprocess.image_size
    length = clip.context_length

    def inputs(number: int) -> ClipInputs:
        images = torch.zeros(number, 3, side, side, dtype=torch.uint8)
        return ClipInputs(images, torch.zeros(number, length, dtype=torch.long), torch.zeros(number, dtype=torch.long))

    return estimate_training(task, inputs, config)
