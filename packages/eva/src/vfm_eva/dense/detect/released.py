"""Import EVA's released detection checkpoints, with every key accounted for (`eva.import_detector`)."""

from __future__ import annotations

import torch
from torch import Tensor

from vfm.models import KeyReport, TransferRules, load_state_dict, to_timm, transfer_weights
from vfm.plugin import AnnotatedImages, Context, DenseCheckpoint, Preflight, UserError
from vfm_eva.dense.detect.checkpoint import build_detector, save_detector
from vfm_eva.dense.detect.eva_layout import DROPPED, ENCODER, RELATIVE, head_name
from vfm_eva.dense.detect.model import Detector
from vfm_eva.dense.detect.stages import ImportDetector
from vfm_eva.dense.released import build_released

_UNUSED = dict.fromkeys(("cls_token", "reg_token", "norm.", "fc_norm.", "head."), "not read by a detector")


def check_import_detector(config: ImportDetector, ctx: Preflight) -> None:
    """Check that the encoder can be built and takes the head.

    Raises:
        UserError: If it cannot.
    """
    data = ctx.artifact(config.data)
    with torch.device("meta"):
        _build(config, data)


def import_detector(config: ImportDetector, ctx: Context) -> DenseCheckpoint:
    """Convert a released file to a detector.

    Raises:
        UserError: If a key is missing, unknown or has another shape.
    """
    data = ctx.load(config.data)
    model = _build(config, data)
    report = load_released(load_state_dict(config.path), model, config.path)
    ctx.log(f"weights: {report.summary}")
    ctx.panel(report.panel("Imported weights"))
    return save_detector(model, ctx.directory, data.class_names)


def load_released(tensors: dict[str, Tensor], model: Detector, where: str) -> KeyReport:
    """Load a state dict with the names of EVA's detection code.

    Args:
        tensors: The state dict.
        model: The detector.
        where: Name of the file, for errors.

    Raises:
        UserError: If a key is missing, unknown or has another shape, or only one of file and detector has relative
            positions.
    """
    expected = model.settings.windows.relative
    if any(RELATIVE.fullmatch(key) for key in tensors) != expected:
        no = "no " if expected else ""
        raise UserError(
            f"{where}: it has {no}relative positions, which EVA-01's detectors have; set detector.windows.relative:"
            f" {str(not expected).lower()}"
        )
    report = KeyReport()
    head = {}
    encoder = {}
    for key, value in tensors.items():
        if key.startswith(ENCODER) and not RELATIVE.fullmatch(key):
            encoder[key.removeprefix(ENCODER)] = value
        else:
            head[key] = value
    to_head = TransferRules(DROPPED, {}, head_name, where=where, source="the file", target="the detector")
    transfer_weights(head, model.head, to_head, report)
    dropped = {"rope": "computed from the grid"}
    to_encoder = TransferRules(dropped, _UNUSED, to_timm(encoder), where=where, source="the file", target="the encoder")
    transfer_weights(encoder, model.encoder.visual, to_encoder, report)
    return report


def _build(config: ImportDetector, data: AnnotatedImages | None) -> Detector:
    num_classes = len(data.class_names) if data else 2  # any number does for the checks before the data exist
    return build_detector(build_released(config.model), num_classes, config.detector)
