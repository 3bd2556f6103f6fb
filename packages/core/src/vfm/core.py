"""The plugin of core: its stages, registered through the same hook as the stages of every other plugin.

Stages are light. The code that a stage runs is in the module that its `work` names, imported when the stage runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import vfm.data.annotated.stages as annotated
import vfm.data.choices.stages as choices
import vfm.data.labeled.stages as labeled
import vfm.data.pairs.stages as pairs
import vfm.data.streaming.stages as streaming
import vfm.data.synthetic.stages as synthetic
import vfm.data.videos.stages as videos
import vfm.eval.choices.stages as caption_choice
import vfm.eval.classify.stages as classify
import vfm.eval.compare.stages as compare
import vfm.eval.dense.stages as dense
import vfm.eval.interpolation.stages as interpolation
import vfm.eval.open_segmentation.stages as open_segmentation
import vfm.eval.retrieval.stages as retrieval
import vfm.eval.video.stages as video
import vfm.models.stages as models
from vfm.interfaces import Stage, hookimpl

ROOMS = (
    pairs, streaming, labeled, choices, annotated, videos, synthetic, models, interpolation,
    classify, retrieval, caption_choice, dense, open_segmentation, video, compare,
)  # fmt: skip


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """List core's stage types: data, synthetic shapes, pretrained models and evaluations."""
    stages: list[type[Stage]] = []
    for room in ROOMS:
        stages += room.STAGES
    return stages
