"""A CLIP model as its training begins: built or loaded, its towers brought in from elsewhere, a part of them locked."""

from __future__ import annotations

from typing import Any

from vfm.models.clip import ClipModel, build_clip, load_clip
from vfm.models.clip_config import clip_config, read_config
from vfm.models.hand_over import hand_over
from vfm.stage import Context
from vfm_clip.text_tower import activation, hand_over_text, text_names
from vfm_clip.tower_training import TowerTraining
from vfm_clip.towers import lock_as_planned, new_weights


def starting_model(plan: TowerTraining, ctx: Context) -> ClipModel:
    """The model of a plan, in the state before its first step.

    Raises:
        UserError: something of what it starts from does not fit.
    """
    clip = _loaded(plan, ctx) if plan.init else _built(plan, ctx)
    if plan.grad_checkpointing:
        towers: Any = clip.module
        towers.set_grad_checkpointing()
    new: set[str] = set()
    if plan.init_vision:
        report = hand_over(ctx.load(plan.init_vision), clip)
        ctx.log(f"vision tower from '{plan.init_vision}': {report.summary}")
        ctx.panel(report.panel())
        new |= new_weights(report)
    if plan.init_text:
        report = hand_over_text(ctx.load(plan.init_text), clip, str(plan.init_text))
        ctx.log(f"text tower from '{plan.init_text}': {report.summary}")
        ctx.panel(report.panel("Weights of the text tower"))
        new |= text_names(clip, report.new)
    lock_as_planned(plan, clip, new)
    return clip


def _loaded(plan: TowerTraining, ctx: Context) -> ClipModel:
    """The model of `init`, at the plan's size."""
    assert plan.init
    checkpoint = ctx.load(plan.init)
    clip = load_clip(checkpoint, image_size=plan.image_size, noise=plan.noise)
    if plan.image_size not in (None, checkpoint.image_size):
        ctx.log(
            f"'{plan.init}' goes on at {plan.image_size} pixels in place of {checkpoint.image_size}: its positions are"
            " resampled"
        )
    return clip


def _built(plan: TowerTraining, ctx: Context) -> ClipModel:
    """A model from scratch, with the activation that the text tower to come was trained with."""
    config = clip_config(plan.model) if isinstance(plan.model, str) else plan.model
    wanted = activation(read_config(ctx.load(plan.init_text).path)["model_cfg"]) if plan.init_text else None
    overrides: dict[str, Any] = {}
    if wanted not in (None, activation(config)):
        ctx.warn(
            f"'{plan.init_text}' was trained with {'QuickGELU' if wanted else 'GELU'}: the model is built with it, in"
            " the towers that are open_clip's own"
        )
        overrides["quick_gelu"] = wanted
    return build_clip(plan.model, image_size=plan.image_size, seed=plan.seed, noise=plan.noise, **overrides)
