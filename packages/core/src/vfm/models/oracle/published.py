"""Choose which part of an imported CLIP model is compared, and with which library."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vfm.models.clip.clip import ClipModel
from vfm.models.clip.model_sources import weights_file_as_source
from vfm.models.oracle.check import Origin
from vfm.models.stages import FOLDER_PREFIX, NO_WEIGHTS, ImportClip
from vfm.models.weight_transfer import KeyReport


def published_clip(
    config: ImportClip, model: ClipModel, report: KeyReport
) -> tuple[ClipModel | nn.Module, Origin | None]:
    """Find the part of an imported model that a library has as well, and its source there.

    For an EVA-CLIP file it is the vision tower. timm reads it.

    Args:
        config: The stage.
        model: The imported model.
        report: What happened to the keys of its file.

    Returns:
        The part and its source. The source is None if no library reads it in the same way.
    """
    source, tag, nothing = config.source, config.pretrained, (model, None)
    is_changed = config.text_from or config.weights == "raw" or report.resized or config.part == "text"
    if isinstance(source, Mapping) or tag == NO_WEIGHTS or is_changed:
        return nothing
    if model.folder and not tag:
        folder = Origin.of_folder(model.folder) or Origin("open_clip", f"{FOLDER_PREFIX}{model.folder}")
        return model, folder
    if report.renamed:
        tower = model.config["vision_cfg"].get("timm_model_name")
        file = weights_file_as_source(source, tag) or tag
        return (model.module.visual.trunk, Origin("timm", tower, str(file))) if tower else nothing  # type: ignore[union-attr, return-value]
    if not tag or config.part != "both" or report.dropped:
        return nothing
    return model, Origin("open_clip", source, tag)
