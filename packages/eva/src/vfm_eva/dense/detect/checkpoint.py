"""Save and load detectors as a folder with the encoder in timm's layout, the head's weights, and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from vfm.eval import DenseTask
from vfm.models import (
    KeyReport,
    TransferRules,
    load_state_dict,
    load_vision,
    save_state_dict,
    save_vision,
    transfer_weights,
)
from vfm.plugin import DenseCheckpoint, UserError, store_files
from vfm_eva.dense.detect.model import Detector
from vfm_eva.dense.detect.settings import DetectorSettings
from vfm_eva.dense.detect.stages import EvaDetect

ENCODER_FOLDER = "encoder"
SETTINGS_FILE = "detector.json"
WEIGHTS_FILE = "head.safetensors"
OF_CLASSES = (".scores.", "cascade.mask_head.masks.")  # weights that depend on the classes
_NEW = "new, for these classes"


def build_detector(encoder: nn.Module, num_classes: int, settings: DetectorSettings, *, seed: int = 0) -> Detector:
    """Build a detector on an encoder, with random weights in the head.

    torch's global generator is not advanced.

    Args:
        encoder: A timm vision transformer.
        num_classes: Number of classes.
        settings: Settings of the detector's parts.
        seed: Seed of the head's weights.

    Raises:
        UserError: If the encoder does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(encoder, num_classes, settings)


def save_detector(model: Detector, directory: Path, class_names: Sequence[str]) -> DenseCheckpoint:
    """Write the encoder, the head and the settings of a detector.

    Args:
        model: The detector.
        directory: Folder of the checkpoint.
        class_names: Names of the classes, in the order of the labels.
    """
    save_vision(model.encoder.visual, directory / ENCODER_FOLDER)
    save_state_dict(model.head.state_dict(), directory / WEIGHTS_FILE)
    (directory / SETTINGS_FILE).write_text(model.settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return DenseCheckpoint.create(
        directory,
        encoder=ENCODER_FOLDER,
        tasks=predicted(model.settings),
        class_names=list(class_names),
        image_size=model.settings.image_size,
        predictor=EvaDetect.predictor,
    )


def predicted(settings: DetectorSettings) -> list[DenseTask]:
    """List the dense tasks of a detector.

    It predicts boxes, and masks if it has a mask head.
    """
    if settings.masks:
        return ["boxes", "masks"]
    return ["boxes"]


def read_settings(checkpoint: DenseCheckpoint) -> DetectorSettings:
    """Read the settings of a detector.

    Raises:
        UserError: If the checkpoint is no detector of this package, or its file is damaged.
    """
    file = checkpoint.path / SETTINGS_FILE
    if checkpoint.predictor != EvaDetect.predictor:
        raise UserError(f"{checkpoint.path}: expected a detector of eva.detect, got a model of {checkpoint.predictor}")
    with store_files.reading(file, "the settings of a detector"):
        return DetectorSettings.model_validate_json(file.read_text(encoding="utf-8"))


def read_detector(checkpoint: DenseCheckpoint) -> Detector:
    """Load a detector in evaluation mode.

    Raises:
        UserError: If a file is missing or does not fit.
    """
    encoder = load_vision(checkpoint.path / checkpoint.encoder)
    model = build_detector(encoder, len(checkpoint.class_names), read_settings(checkpoint))
    load_head(checkpoint, model, checkpoint.class_names)
    return model.eval()


def load_head(checkpoint: DenseCheckpoint, model: Detector, class_names: Sequence[str]) -> KeyReport:
    """Load the head of a checkpoint into a detector.

    If the classes differ, weights that depend on them keep their initial values. If the checkpoint has no masks, the
    mask head keeps its initial weights.

    Args:
        checkpoint: The checkpoint to load.
        model: The detector.
        class_names: Classes of the detector.

    Returns:
        What happened to every weight.

    Raises:
        UserError: If a weight is missing, unknown, or has another shape.
    """
    weights = load_state_dict(checkpoint.path / WEIGHTS_FILE)
    report = KeyReport()
    new: dict[str, str] = {}
    if list(class_names) != checkpoint.class_names:
        for key in list(weights):
            if any(part in key for part in OF_CLASSES):
                del weights[key]
                new[key] = _NEW
    if model.settings.masks and not any(".mask_head." in key for key in weights):
        new["cascade.mask_head."] = "new, since the start has no masks"
    if model.settings.masks:
        dropped = {}
    else:
        dropped = {"cascade.mask_head.": "this detector has no masks"}
    where = str(checkpoint.path / WEIGHTS_FILE)
    rules = TransferRules(dropped, new, where=where, source="the file", target="the detector")
    transfer_weights(weights, model.head, rules, report)
    return report
