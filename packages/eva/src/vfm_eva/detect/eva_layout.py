"""Names of a detector's weights in EVA's released detection files (detectron2's), and where they go.

    backbone.net.*                       the encoder, in the layouts of `vfm.models`
    backbone.simfp_{2..5}.N.*            pyramid.levels.{0..3}: resampling layers, then two convolutions with norms
    proposal_generator.rpn_head.*        proposals.head
    roi_heads.box_head.S.*               cascade.stages.S: convolutions and the linear layer
    roi_heads.box_predictor.S.*          cascade.stages.S: scores and deltas
    roi_heads.mask_head.*                cascade.mask_head

Source: the public EVA repository and detectron2.
"""

from __future__ import annotations

import re

ENCODER = "backbone.net."
DROPPED = {
    "pixel_mean": "belongs to the preprocessing",
    "pixel_std": "belongs to the preprocessing",
    "fed_loss_cls_weights": "counted from the training data",
    "cell_anchors": "computed from the settings",
}
RELATIVE = "rel_pos_"
_RESAMPLING = (4, 1, 0, 1)  # layers before the convolutions of each level
_SIMPLE = (
    (r"proposal_generator\.rpn_head\.conv\.(?:conv)?(\d+)\.", r"proposals.head.conv.\1.0."),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"proposals.head.conv.0.0.\1"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", r"proposals.head.cls_logits."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", r"proposals.head.bbox_pred."),
    (r"roi_heads\.box_head\.(\d+)\.fc1\.", r"cascade.stages.\1.fc."),
    (r"roi_heads\.box_predictor\.(\d+)\.cls_score\.", r"cascade.stages.\1.scores."),
    (r"roi_heads\.box_predictor\.(\d+)\.bbox_pred\.", r"cascade.stages.\1.deltas."),
    (r"roi_heads\.mask_head\.deconv\.", r"cascade.mask_head.upsample."),
    (r"roi_heads\.mask_head\.predictor\.", r"cascade.mask_head.masks."),
)
_LEVEL = re.compile(r"backbone\.simfp_([2-5])\.(\d+)\.(norm\.)?(\w+)")
_BOX_CONV = re.compile(r"roi_heads\.box_head\.(\d+)\.conv(\d+)\.(norm\.)?(\w+)")
_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(norm\.)?(\w+)")


def head_name(key: str) -> str:
    """Return the name of a head's weight in `DetectorHead`; an unknown name is returned as it is."""
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
    for pattern, name in _SIMPLE:
        key = re.sub(f"^{pattern}", name, key)
    return key
