"""Import EVA's released segmentation checkpoints, with every key accounted for (`eva.import_segmenter`).

EVA-01's files (Mask2Former on a ViT-Adapter) have the names in `mask2former_layout`. EVA-02's files (UperNet) have:

    backbone.fpn{1..4}.*      head.resample.{0..3}
    backbone.*                the encoder, in the layouts of `vfm.models`
    decode_head.*             head.decode (conv_seg is the classifier, bn the batch_norm)
    auxiliary_head.*          head.auxiliary

Source: the public EVA repository and mmsegmentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.models import KeyReport, TransferRules, load_state_dict, to_timm, transfer_weights, vision_preprocess
from vfm.plugin import Context, DenseCheckpoint, Preflight, UserError
from vfm_eva.dense.released import build_released
from vfm_eva.dense.segment import mask2former_layout
from vfm_eva.dense.segment.maps import MapSegmenter
from vfm_eva.dense.segment.mask2former import Mask2FormerSegmenter
from vfm_eva.dense.segment.model import HeadRecord, check_side, save_segmenter
from vfm_eva.dense.segment.stages import ImportSegmenter

ENCODER = "backbone."
_LEVEL = re.compile(r"backbone\.fpn([1-4])\..*")
_UNUSED = dict.fromkeys(("norm.", "fc_norm.", "head."), "not read by the head")
_COUNTS = {"num_batches_tracked": "counts the batches of the training"}
_RENAMED = (
    (r"^backbone\.fpn(\d)", lambda match: f"resample.{int(match[1]) - 1}"),
    (r"^decode_head\.", "decode."),
    (r"^auxiliary_head\.", "auxiliary."),
    (r"\.conv_seg\.", ".classifier."),
    (r"\.bn\.", ".batch_norm."),
)


def head_name(key: str) -> str:
    """Convert an official weight name to its name in `UperNet`. Unknown names are not changed."""
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return key


@dataclass(frozen=True)
class CheckpointLayout:
    """The names in a kind of file.

    It has the backbone keys that belong to the head, their conversion, and the keys to drop.
    """

    in_head: re.Pattern[str]
    name: Callable[[str], str]
    dropped: Mapping[str, str]


UPERNET = CheckpointLayout(_LEVEL, head_name, _COUNTS)
MASK2FORMER = CheckpointLayout(
    mask2former_layout.ADAPTER,
    mask2former_layout.head_name,
    {**_COUNTS, "relative_position_index": "computed from the grid"},
)


def check_import_segmenter(config: ImportSegmenter, ctx: Preflight) -> None:
    """Check that the encoder can be built and takes the head.

    Raises:
        UserError: If it cannot.
    """
    data = ctx.artifact(config.data)
    with torch.device("meta"):
        num_classes = len(data.class_names) if data else 2  # any number does for shapes
        _build(config, num_classes)


def import_segmenter(config: ImportSegmenter, ctx: Context) -> DenseCheckpoint:
    """Convert a released file to a segmenter.

    Raises:
        UserError: If a key is missing, unknown or has another shape.
    """
    data = ctx.load(config.data)
    model = _build(config, len(data.class_names))
    report = load_released(load_state_dict(config.path), model, config.path)
    ctx.log(f"weights: {report.summary}")
    ctx.panel(report.panel("Imported weights"))
    record = HeadRecord(config.head.model_dump(mode="json"), "semantic", frozen=False, things=data.things)
    return save_segmenter(model, record, ctx.directory, data.class_names)


def load_released(tensors: dict[str, Tensor], model: MapSegmenter | Mask2FormerSegmenter, where: str) -> KeyReport:
    """Load a state dict with the names of EVA's segmentation code.

    Args:
        tensors: The state dict.
        model: An encoder with UperNet or with Mask2Former.
        where: Name of the file, for errors.

    Raises:
        UserError: If a key is missing, unknown or has another shape, or the file does not match the kind of model.
    """
    _check_kind(tensors, model, where)
    layout = MASK2FORMER if isinstance(model, Mask2FormerSegmenter) else UPERNET
    report = KeyReport()
    head = {}
    encoder = {}
    for key, value in tensors.items():
        if key.startswith(ENCODER) and not layout.in_head.fullmatch(key):
            encoder[key.removeprefix(ENCODER)] = value
        else:
            head[key] = value
    head = mask2former_layout.split_attention(head)
    to_head = TransferRules(layout.dropped, _COUNTS, layout.name, where=where, source="the file", target="the head")
    transfer_weights(head, model.head, to_head, report)
    dropped = {"rope": "computed from the grid"}
    to_encoder = TransferRules(dropped, _UNUSED, to_timm(encoder), where=where, source="the file", target="the encoder")
    transfer_weights(encoder, model.encoder.visual, to_encoder, report)
    return report


def _check_kind(tensors: dict[str, Tensor], model: MapSegmenter | Mask2FormerSegmenter, where: str) -> None:
    adapted = any(key.startswith("backbone.spm.") for key in tensors)
    if adapted != isinstance(model, Mask2FormerSegmenter):
        article, head_type = ("a", "mask2former") if adapted else ("no", "upernet")
        raise UserError(
            f"{where}: it has {article} ViT-Adapter (backbone.spm), which EVA-01's files have and EVA-02's have not;"
            f" set head.type: {head_type}"
        )
    if isinstance(model, Mask2FormerSegmenter):
        relative = any(key.endswith(mask2former_layout.RELATIVE) for key in tensors)
        if relative != (model.head.adapter.bias is not None):
            no = "" if relative else "no "
            raise UserError(f"{where}: it has {no}relative positions; set head.relative: {str(relative).lower()}")


def _build(config: ImportSegmenter, num_classes: int) -> MapSegmenter | Mask2FormerSegmenter:
    encoder = build_released(config.model)
    model: MapSegmenter | Mask2FormerSegmenter = config.head.build(encoder, num_classes, frozen=False)
    check_side(vision_preprocess(encoder).image_size, model.encoder)
    return model
