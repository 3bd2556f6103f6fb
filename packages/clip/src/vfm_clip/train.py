"""Build the initial model, the task and the data of `clip.train`, and train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from vfm.data import warn_of_readers
from vfm.models import (
    ClipModel,
    build_clip,
    get_clip_config,
    init_vision_tower,
    load_clip,
    open_clip_incompatibility,
    read_clip_config,
)
from vfm.plugin import ClipCheckpoint, Context
from vfm.train import TrainedTower, exporting, fit, is_main, prepare_towers, weights_from_first
from vfm_clip.data import first_samples_panel, language_weights, training_data
from vfm_clip.dataset_checks import check_datasets
from vfm_clip.diagnosis import Diagnosis
from vfm_clip.loss_parts import LogitBias
from vfm_clip.stages import ClipTrain
from vfm_clip.task import ClipTask
from vfm_clip.teacher_check import check_teacher
from vfm_clip.text_tower_init import init_text_tower, names_in_model, uses_quick_gelu
from vfm_clip.towers import new_weights, trained_towers


def train_clip(config: ClipTrain, ctx: Context) -> ClipCheckpoint:
    """Build, train and save a CLIP model."""
    datasets = {str(each.data): ctx.load(each.data) for each in config.portions}
    balanced = config.loading.sampler == "balanced"
    check_datasets(datasets, config.portions, config.language, config.global_batch_size, balanced=balanced)
    # A sharded model is built in rank 0 alone. Other ranks receive their parts later.
    with weights_from_first(config.runtime):
        clip, towers, merge = initial_model(config, ctx)
    task = ClipTask(
        clip,
        loss=config.loss,
        teacher=_teacher(config, ctx, clip),
        logit_scale_max=config.logit_scale.max,
        train_logit_scale=not config.logit_scale.lock,
        unmasked_from=config.unmasked_from,
        towers=towers,
    )
    weights = language_weights(config.language, next(iter(datasets.values())))
    data, make = training_data(config, list(datasets.values()), clip, weights)
    warn_of_readers(data.source, config, ctx)
    # All processes have the same first samples, so one panel is enough.
    if is_main():
        ctx.panel(first_samples_panel(data, make, ctx.directory))
    fit(task, data, config, replace(ctx, send=_diagnosis(config, ctx)))
    with exporting(config.runtime, ctx):
        # LoRA's updates are merged, so that the export is an ordinary model.
        merge()
        checkpoint = task.export(ctx.directory)
    incompatibility = open_clip_incompatibility(clip)
    if incompatibility:
        ctx.warn(incompatibility)
    return checkpoint


def initial_model(config: ClipTrain, ctx: Context) -> tuple[ClipModel, Sequence[TrainedTower], Callable[[], None]]:
    """Build the initial model and set it up for training.

    Returns:
        The model, its towers, and a function that merges LoRA weights after the last step.

    Raises:
        UserError: If a model or tower that it starts from does not fit.
    """
    # The order matters: first the weights, then the choice of trained weights (new ones always are), then the logits.
    clip = _loaded(config, ctx) if config.init else _built(config, ctx)
    module: Any = clip.module
    if config.grad_checkpointing:
        module.set_grad_checkpointing()
    # Weights that no checkpoint has are trained even in a frozen tower.
    new: set[str] = set()
    if config.init_vision:
        take = config.vision.normalization == "encoder"
        report = init_vision_tower(ctx.load(config.init_vision), clip, take_normalization=take)
        ctx.log(f"vision tower from '{config.init_vision}': {report.summary}")
        ctx.panel(report.panel())
        new |= new_weights(report)
    if config.init_text:
        report = init_text_tower(ctx.load(config.init_text), clip, str(config.init_text))
        ctx.log(f"text tower from '{config.init_text}': {report.summary}")
        ctx.panel(report.panel("Weights of the text tower"))
        new |= names_in_model(clip, report.new)
    towers = trained_towers(clip, config.vision, config.text, new=new)
    merge = prepare_towers(towers, seed=config.seed)
    bias = config.loss.logit_bias
    if bias:
        init_logit_bias(clip, bias)
    # A SigLIP model has a bias that a softmax loss ignores.
    elif getattr(module, "logit_bias", None) is not None:
        ctx.warn(f"{clip.name} was trained with SigLIP's sigmoid loss; loss {config.loss.type} does not use its bias")
    if config.logit_scale.init:
        module.logit_scale.data.fill_(math.log(config.logit_scale.init))
    return clip, towers, merge


def init_logit_bias(clip: ClipModel, bias: LogitBias) -> None:
    """Set the logit bias of a model, in place.

    A model without a bias gets one, and the temperature that goes with it.

    Args:
        clip: The model.
        bias: Initial values.
    """
    module: Any = clip.module
    if getattr(module, "logit_bias", None) is None:
        initial = bias.new if bias.init is None else bias.init
        module.logit_bias = torch.nn.Parameter(torch.tensor(initial))
        module.logit_scale.data.fill_(math.log(bias.new_scale))
        clip.config["init_logit_bias"] = initial  # from this key open_clip knows that the model has a bias
    elif bias.init is not None:
        module.logit_bias.data.fill_(bias.init)


def _loaded(config: ClipTrain, ctx: Context) -> ClipModel:
    """Load the model of `init`, at the configured image size."""
    assert config.init
    checkpoint = ctx.load(config.init)
    clip = load_clip(checkpoint, image_size=config.image_size, noise=config.vision.noise)
    if config.image_size not in (None, checkpoint.image_size):
        sizes = f"image size {config.image_size} in place of {checkpoint.image_size}"
        ctx.log(f"'{config.init}': {sizes}; positions are resampled")
    return clip


def _built(config: ClipTrain, ctx: Context) -> ClipModel:
    """Build a model from scratch, with the activation that its initial text tower was trained with."""
    if isinstance(config.model, str):
        model = get_clip_config(config.model)
    else:
        model = config.model
    overrides: dict[str, Any] = {}
    if config.init_text:
        expected = uses_quick_gelu(read_clip_config(ctx.load(config.init_text).path)["model_cfg"])
        if expected not in (None, uses_quick_gelu(model)):
            activation = "QuickGELU" if expected else "GELU"
            ctx.warn(
                f"'{config.init_text}' was trained with {activation}: the model is built with"
                " it, in the towers that are open_clip's own"
            )
            overrides["quick_gelu"] = expected
    noise = config.vision.noise
    return build_clip(config.model, image_size=config.image_size, seed=config.seed, noise=noise, **overrides)


def _teacher(config: ClipTrain, ctx: Context, clip: ClipModel) -> ClipModel | None:
    ref = config.loss.teacher_ref
    if not ref:
        return None
    teacher = load_clip(ctx.load(ref))
    check_teacher(clip, teacher)
    return teacher


def _diagnosis(config: ClipTrain, ctx: Context) -> Diagnosis:
    return Diagnosis(
        ctx,
        num_steps=config.num_steps,
        warmup_steps=config.schedule.warmup_steps,
        global_batch_size=config.global_batch_size,
        chance_level=config.loss.chance_level(config.global_batch_size),
        logit_scale_max=None if config.logit_scale.lock else config.logit_scale.max,
    )
