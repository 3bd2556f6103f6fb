"""Checks of `eval.open_segmentation` before a run, without torch."""

from __future__ import annotations

from vfm.base import UserError
from vfm.eval.open_segmentation.stages import OpenSegmentation
from vfm.interfaces import AnnotatedImages, Preflight


def check_open_segmentation(config: OpenSegmentation, ctx: Preflight) -> None:
    """Check the labels of the data where it exists."""
    if data := ctx.artifact(config.data):
        check_open_segmentation_data(config, data)


def check_open_segmentation_data(config: OpenSegmentation, data: AnnotatedImages) -> None:
    """Check that a dataset has semantic labels and images.

    Raises:
        UserError: it has not.
    """
    if "semantic" not in data.labels or not data.has_images:
        found = ", ".join(data.labels) if data.has_images else "labels only"
        raise UserError(f"{config.data}: {config.kind} needs images with semantic labels, got {found}")
