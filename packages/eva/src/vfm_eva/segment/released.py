"""The work of `eva.import_segmenter`: EVA-02's released segmentation checkpoints, with every key accounted for.

    backbone.fpn{1..4}.*      head.resample.{0..3}
    backbone.*                the encoder, in the layouts of `vfm.models`
    decode_head.*             head.decode; conv_seg is the classifier, bn the batch_norm
    auxiliary_head.*          head.auxiliary

Source: the public EVA repository and mmsegmentation.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vfm.models import (
    KeyReport,
    TransferRules,
    build_vision,
    load_state_dict,
    to_timm,
    transfer_weights,
    vision_preprocess,
)
from vfm.plugin import Context, DenseCheckpoint, Preflight, UserError
from vfm_eva.segment.maps import MapSegmenter
from vfm_eva.segment.model import HeadRecord, build_upernet, check_side, save_segmenter
from vfm_eva.stages_segment import ImportSegmenter

ENCODER = "backbone."
EVA_01 = ("backbone.spm.", "decode_head.pixel_decoder.")  # a ViT-Adapter, and a Mask2Former
_LEVEL = re.compile(r"backbone\.fpn([1-4])\.")
_UNUSED = dict.fromkeys(("norm.", "fc_norm.", "head."), "not read by UperNet")
_RENAMED = (
    (r"^backbone\.fpn(\d)", lambda found: f"resample.{int(found[1]) - 1}"),
    (r"^decode_head\.", "decode."),
    (r"^auxiliary_head\.", "auxiliary."),
    (r"\.conv_seg\.", ".classifier."),
    (r"\.bn\.", ".batch_norm."),
)


def check_import_segmenter(config: ImportSegmenter, ctx: Preflight) -> None:
    """Check that the encoder can be built and takes the head.

    Raises:
        UserError: it does not.
    """
    data = ctx.artifact(config.data)
    with torch.device("meta"):
        _build(config, len(data.class_names) if data else 2)


def import_segmenter(config: ImportSegmenter, ctx: Context) -> DenseCheckpoint:
    """Read the file into a segmenter.

    Raises:
        UserError: a key is missing, unknown or of another shape.
    """
    data = ctx.load(config.data)
    model = _build(config, len(data.class_names))
    report = load_released(load_state_dict(config.path), model, config.path)
    ctx.log(f"weights: {report.summary}")
    ctx.panel(report.panel("Imported weights"))
    record = HeadRecord(config.head.model_dump(mode="json"), "semantic", frozen=False, things=data.things)
    return save_segmenter(model, record, ctx.directory, data.class_names)


def load_released(tensors: dict[str, Tensor], model: MapSegmenter, where: str) -> KeyReport:
    """Load a state dict in the names of EVA-02's segmentation code.

    Args:
        tensors: the state dict.
        model: an encoder with UperNet.
        where: the file, for errors.

    Raises:
        UserError: a key is missing, unknown or of another shape, or the file is of EVA-01.
    """
    if other := next((key for key in tensors if key.startswith(EVA_01)), None):
        raise UserError(
            f"{where}: it has {other}, as EVA-01's Mask2Former with a ViT-Adapter, which is not built here; expected"
            " EVA-02's UperNet"
        )
    report = KeyReport()
    in_head = {key for key in tensors if not key.startswith(ENCODER) or _LEVEL.match(key)}
    head = {key: value for key, value in tensors.items() if key in in_head}
    counts = {"num_batches_tracked": "counts the batches of the training"}
    to_head = TransferRules(counts, counts, head_name, where=where, source="the file", target="the head")
    transfer_weights(head, model.head, to_head, report)
    encoder = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key not in in_head}
    dropped = {"rope": "computed from the grid"}
    to_encoder = TransferRules(dropped, _UNUSED, to_timm(encoder), where=where, source="the file", target="the encoder")
    transfer_weights(encoder, model.encoder.visual, to_encoder, report)
    return report


def head_name(key: str) -> str:
    """Return the name of a head's weight in `UperNet`; an unknown name is returned as it is."""
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return key


def _build(config: ImportSegmenter, num_classes: int) -> MapSegmenter:
    encoder = build_vision(config.model, num_classes=0)
    model = build_upernet(config.head, encoder, num_classes, frozen=False)
    check_side(vision_preprocess(encoder).image_size, model.encoder)
    return model
