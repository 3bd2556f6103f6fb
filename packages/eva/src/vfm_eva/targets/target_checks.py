"""Checks that a teacher has a target, and that stored targets match a student, its data and each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vfm.models import feature_width, planned_encoder, vision_tower
from vfm.plugin import ClipCheckpoint, ImageDataset, Preflight, Ref, SampleCache, UserError, VisionCheckpoint
from vfm_eva.targets.parts import Target


def check_teacher(ref: Ref[ClipCheckpoint | VisionCheckpoint], target: Target, ctx: Preflight) -> None:
    """Check that a teacher has the patch tokens, layer and projection of a target.

    Its stage need not have run.

    Args:
        ref: The teacher.
        target: Settings of the target.
        ctx: Plan of the recipe.

    Raises:
        UserError: If it lacks one.
    """
    if not target.needs_teacher:
        return
    try:
        encoder: Any = planned_encoder(ctx, ref)
    except UserError:  # a mistake that the other stage's preflight reports
        return
    if encoder is None:
        return
    stage = ctx.stage(ref)
    if stage and stage.kind_name() == "eva.pretrain" and not ctx.artifact(ref):
        encoder.reset_classifier(0)  # a student has no head, others keep theirs
    try:
        feature_width(encoder, projected=getattr(target, "projected", False))
        vision_tower(encoder).block_index(getattr(target, "layer", -1))
    except UserError as error:
        raise UserError(f"teacher {str(ref)!r}: {error} (in target)") from None


def check_grid(target_grid: tuple[int, ...], grid: tuple[int, int]) -> None:
    """Check that targets have the student's grid of patches."""
    if target_grid != grid:
        sides = " x ".join(map(str, target_grid))
        raise UserError(
            f"expected targets for {grid[0]} x {grid[1]} patches, the student's; got {sides}; set grid: {list(grid)} in"
            " the stage that makes the targets"
        )


def check_data(cache: SampleCache, data: ImageDataset) -> None:
    """Check that the cache's rows belong to this dataset."""
    made_from = cache.linked(cache.data).resolve()
    if made_from != data.path.resolve():
        raise UserError(f"expected targets made from data, {data.path.resolve()}; got targets made from {made_from}")


def check_same_crops(caches: Sequence[SampleCache]) -> None:
    """Check that the targets of several teachers belong to the same crops."""
    first = caches[0]
    for cache in caches[1:]:
        for name in ("crop_scale", "flip", "seed", "num_crops"):
            expected = getattr(first, name)
            value = getattr(cache, name)
            if value != expected:
                raise UserError(
                    f"targets of several teachers must have the same crops: {cache.path} has {name} {value}, expected"
                    f" {expected}, as in {first.path}"
                )
