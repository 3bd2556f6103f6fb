"""Map the weight names of EVA's released detection files (detectron2's layout) to the names of `DetectorHead`.

    backbone.net.*                       the encoder, in the layouts of `vfm.models`
    backbone.net.blocks.N.attn.rel_pos_* relative.N: rows and columns
    backbone.simfp_{2..5}.N.*            pyramid.levels.{0..3}: resampling layers, then two convolutions with norms
    proposal_generator.rpn_head.*        proposals.head
    roi_heads.box_head.S.*               cascade.stages.S: convolutions and the linear layer
    roi_heads.box_predictor.S.*          cascade.stages.S: scores and deltas
    roi_heads.mask_head.*                cascade.mask_head

Source: the public EVA repository and detectron2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ENCODER = "backbone.net."
DROPPED = {
    "pixel_mean": "belongs to the preprocessing",
    "pixel_std": "belongs to the preprocessing",
    "fed_loss_cls_weights": "counted from the training data",
    "cell_anchors": "computed from the settings",
}
RELATIVE = re.compile(r"backbone\.net\.blocks\.(\d+)\.attn\.rel_pos_([hw])")
_RESAMPLING = (4, 1, 0, 1)  # layers before the convolutions of each level
_NAMES = (  # official names and our names; {} is a number
    ("proposal_generator.rpn_head.conv.conv{}.", "proposals.head.conv.{}.0."),
    ("proposal_generator.rpn_head.objectness_logits.", "proposals.head.cls_logits."),
    ("proposal_generator.rpn_head.anchor_deltas.", "proposals.head.bbox_pred."),
    ("roi_heads.box_head.{}.fc1.", "cascade.stages.{}.fc."),
    ("roi_heads.box_predictor.{}.cls_score.", "cascade.stages.{}.scores."),
    ("roi_heads.box_predictor.{}.bbox_pred.", "cascade.stages.{}.deltas."),
    ("roi_heads.mask_head.deconv.", "cascade.mask_head.upsample."),
    ("roi_heads.mask_head.predictor.", "cascade.mask_head.masks."),
)
_SINGLE_CONV = "proposal_generator.rpn_head.conv."  # name of the convolution in heads with only one
_LEVEL = re.compile(r"backbone\.simfp_([2-5])\.(\d+)\.(norm\.)?(\w+)")
_BOX_CONV = re.compile(r"roi_heads\.box_head\.(\d+)\.conv(\d+)\.(norm\.)?(\w+)")
_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(norm\.)?(\w+)")
_AXES = {"h": "rows", "w": "columns"}


def head_name(key: str) -> str:
    """Convert an official name of a head's weight to its name in `DetectorHead`. Unknown names are not changed."""
    match = RELATIVE.fullmatch(key)
    if match:
        return f"relative.{match[1]}.{_AXES[match[2]]}"
    match = _LEVEL.fullmatch(key)
    if match:
        level = int(match[1]) - 2
        layer = int(match[2])
        norm = match[3]
        kind = match[4]
        first = _RESAMPLING[level]
        if layer >= first:  # a convolution and its norm are two layers here, but one in EVA's files
            layer = first + 2 * (layer - first) + bool(norm)
        return f"pyramid.levels.{level}.{layer}.{kind}"
    match = _BOX_CONV.fullmatch(key)
    if match:
        return f"cascade.stages.{match[1]}.convs.{int(match[2]) - 1}.{int(bool(match[3]))}.{match[4]}"
    match = _MASK_CONV.fullmatch(key)
    if match:
        return f"cascade.mask_head.convs.{int(match[1]) - 1}.{int(bool(match[2]))}.{match[3]}"
    if key.startswith(_SINGLE_CONV) and not key.startswith(f"{_SINGLE_CONV}conv"):
        return key.replace(_SINGLE_CONV, "proposals.head.conv.0.0.")
    return _renamed(key, _NAMES)


def _renamed(key: str, names: Sequence[tuple[str, str]]) -> str:
    """Apply the first (old, new) pair whose old name matches the beginning of a key."""
    for old, new in names:
        match = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), key)
        if match:
            return new.format(*match.groups()) + key[match.end() :]
    return key
