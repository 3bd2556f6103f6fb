"""Names of a detector's weights in EVA's released detection files (detectron2's), and where they go.

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
_NAMES = (  # official names and ours; {} is a number
    ("proposal_generator.rpn_head.conv.conv{}.", "proposals.head.conv.{}.0."),
    ("proposal_generator.rpn_head.objectness_logits.", "proposals.head.cls_logits."),
    ("proposal_generator.rpn_head.anchor_deltas.", "proposals.head.bbox_pred."),
    ("roi_heads.box_head.{}.fc1.", "cascade.stages.{}.fc."),
    ("roi_heads.box_predictor.{}.cls_score.", "cascade.stages.{}.scores."),
    ("roi_heads.box_predictor.{}.bbox_pred.", "cascade.stages.{}.deltas."),
    ("roi_heads.mask_head.deconv.", "cascade.mask_head.upsample."),
    ("roi_heads.mask_head.predictor.", "cascade.mask_head.masks."),
)
_SINGLE_CONV = "proposal_generator.rpn_head.conv."  # its name where there is only one
_LEVEL = re.compile(r"backbone\.simfp_([2-5])\.(\d+)\.(norm\.)?(\w+)")
_BOX_CONV = re.compile(r"roi_heads\.box_head\.(\d+)\.conv(\d+)\.(norm\.)?(\w+)")
_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(norm\.)?(\w+)")
_AXES = {"h": "rows", "w": "columns"}
_OUR_RELATIVE = re.compile(r"relative\.(\d+)\.(rows|columns)")
_OUR_LEVEL = re.compile(r"pyramid\.levels\.(\d)\.(\d+)\.(\w+)")
_OUR_CONV = re.compile(r"cascade\.(?:stages\.(\d+)|mask_head)\.convs\.(\d+)\.([01])\.(\w+)")


def head_name(key: str) -> str:
    """Return the name of a head's weight in `DetectorHead`; an unknown name is returned as it is."""
    if found := RELATIVE.fullmatch(key):
        return f"relative.{found[1]}.{_AXES[found[2]]}"
    if found := _LEVEL.fullmatch(key):
        level, layer, norm, kind = int(found[1]) - 2, int(found[2]), found[3], found[4]
        first = _RESAMPLING[level]
        if layer >= first:  # a convolution and its norm are two layers here, one there
            layer = first + 2 * (layer - first) + bool(norm)
        return f"pyramid.levels.{level}.{layer}.{kind}"
    if found := _BOX_CONV.fullmatch(key):
        return f"cascade.stages.{found[1]}.convs.{int(found[2]) - 1}.{int(bool(found[3]))}.{found[4]}"
    if found := _MASK_CONV.fullmatch(key):
        return f"cascade.mask_head.convs.{int(found[1]) - 1}.{int(bool(found[2]))}.{found[3]}"
    if key.startswith(_SINGLE_CONV) and not key.startswith(f"{_SINGLE_CONV}conv"):
        return key.replace(_SINGLE_CONV, "proposals.head.conv.0.0.")
    return _renamed(key, _NAMES)


def official_name(key: str) -> str:
    """Return the name in EVA's files of a weight of `DetectorHead`; the inverse of `head_name`."""
    if found := _OUR_RELATIVE.fullmatch(key):
        return f"{ENCODER}blocks.{found[1]}.attn.rel_pos_{'h' if found[2] == 'rows' else 'w'}"
    if found := _OUR_LEVEL.fullmatch(key):
        level, layer, norm = int(found[1]), int(found[2]), 0
        first = _RESAMPLING[level]
        if layer >= first:
            layer, norm = divmod(layer - first, 2)
            layer += first
        return f"backbone.simfp_{level + 2}.{layer}.{'norm.' if norm else ''}{found[3]}"
    if found := _OUR_CONV.fullmatch(key):
        stage, number, norm, kind = found[1], int(found[2]) + 1, found[3] == "1", found[4]
        prefix = f"box_head.{stage}.conv" if stage else "mask_head.mask_fcn"
        return f"roi_heads.{prefix}{number}.{'norm.' if norm else ''}{kind}"
    return _renamed(key, [(ours, official) for official, ours in _NAMES])


def _renamed(key: str, names: Sequence[tuple[str, str]]) -> str:
    """Apply the first of the pairs that matches the beginning of a key."""
    for old, new in names:
        if found := re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), key):
            return new.format(*found.groups()) + key[found.end() :]
    return key
