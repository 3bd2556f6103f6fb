"""Build, save and load segmenters: an encoder in timm's layout with a head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vfm.eval import DenseTask
from vfm.models import (
    VISION_WEIGHTS_FILE,
    KeyReport,
    TransferRules,
    build_vision,
    check_vision_transformer,
    load_clip,
    load_state_dict,
    load_vision,
    save_state_dict,
    save_vision,
    transfer_weights,
)
from vfm.plugin import ClipCheckpoint, DenseCheckpoint, UserError, VisionCheckpoint
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.segment.maps import LinearMapHead, MapSegmenter, UperNet
from vfm_eva.dense.segment.mask2former import Mask2FormerSegmenter
from vfm_eva.dense.segment.queries import QueriesHead, QuerySegmenter
from vfm_eva.dense.segment.stages import (
    EvaSegment,
    LinearSegmentation,
    QueriesSegmentation,
    SegmentationHead,
    UperNetSegmentation,
)

HEAD_WEIGHTS_FILE = "head.safetensors"
HEAD_CONFIG_FILE = "head.json"
ENCODER_FOLDER = "encoder"
NOT_READ = ("head.", "attn_pool.")  # parts of an encoder that no segmentation head uses
PREDICTED: dict[str, list[DenseTask]] = {
    "semantic": ["semantic"],
    "instance": ["boxes", "masks"],
    "panoptic": ["panoptic", "semantic", "boxes", "masks"],
}
Segmenter = QuerySegmenter | MapSegmenter | Mask2FormerSegmenter


@dataclass(frozen=True)
class HeadRecord:
    """The description of a head in a checkpoint folder.

    Attributes:
        head: The settings of the head.
        task: Semantic, instance or panoptic.
        frozen: Whether the encoder was frozen.
        things: Whether each class has instances.
    """

    head: dict[str, Any]
    task: str
    frozen: bool
    things: list[bool]

    @property
    def settings(self) -> SegmentationHead:
        """The validated settings of the head."""
        choice = SegmentationHead.choices[self.head["type"]]
        return choice.model_validate(self.head)  # type: ignore[return-value]


def build_queries(
    settings: QueriesSegmentation, encoder: nn.Module, num_classes: int, *, frozen: bool
) -> QuerySegmenter:
    """Build an encoder with queries in its last blocks.

    Args:
        settings: Settings of the head.
        encoder: A timm vision transformer.
        num_classes: Number of classes.
        frozen: Whether the encoder is not trained.
    """
    dense = DenseEncoder(encoder)
    head = QueriesHead(dense.width, num_classes, settings.num_queries, dense.patch_size)
    return QuerySegmenter(dense, head, settings.num_blocks, frozen=frozen)


def build_linear(settings: LinearSegmentation, encoder: nn.Module, num_classes: int, *, frozen: bool) -> MapSegmenter:
    """Build an encoder with a linear head.

    Args:
        settings: Settings of the head.
        encoder: A timm vision transformer.
        num_classes: Number of classes.
        frozen: Whether the encoder is not trained.
    """
    dense = DenseEncoder(encoder, layers=settings.layers)
    return MapSegmenter(dense, LinearMapHead(dense.width, len(settings.layers), num_classes), frozen=frozen)


def build_upernet(settings: UperNetSegmentation, encoder: nn.Module, num_classes: int, *, frozen: bool) -> MapSegmenter:
    """Build an encoder with UperNet.

    Args:
        settings: Settings of the head.
        encoder: A timm vision transformer.
        num_classes: Number of classes.
        frozen: Whether the encoder is not trained.
    """
    dense = DenseEncoder(encoder, layers=settings.layers)
    head = UperNet(dense.width, num_classes, settings.channels, auxiliary=settings.auxiliary > 0)
    return MapSegmenter(dense, head, frozen=frozen)


def build_segmenter(config: EvaSegment, encoder: nn.Module, num_classes: int) -> Segmenter:
    """Build the model to train, with a new head.

    Args:
        config: Settings of the training. The random weights are drawn from its seed.
        encoder: A timm vision transformer.
        num_classes: Number of classes.

    Raises:
        UserError: If the head does not fit the encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: Segmenter = config.head.build(encoder, num_classes, frozen=config.is_frozen)
    check_side(config.image_size, model.encoder)
    for name, parameter in model.encoder.visual.named_parameters():
        if name.startswith(NOT_READ):
            parameter.requires_grad_(False)
    return model


def check_side(image_size: int | None, encoder: DenseEncoder) -> None:
    """Check that images divide into patches.

    Raises:
        UserError: If they do not.
    """
    side = image_size or encoder.trunk.grid[0] * encoder.patch_size
    if side % encoder.patch_size:
        raise UserError(f"image_size: expected a multiple of the patch size {encoder.patch_size}, got {side}")


def build_encoder(config: EvaSegment, checkpoint: VisionCheckpoint | ClipCheckpoint) -> nn.Module:
    """Build the architecture of an encoder without a head. Weights are not loaded.

    Raises:
        UserError: If it cannot be built with these settings, or a CLIP model's image tower is not from timm.
    """
    arguments: dict[str, Any] = {"drop_path_rate": config.drop_path, "num_classes": 0}
    if config.patch_size:
        arguments["patch_size"] = config.patch_size
    if isinstance(checkpoint, VisionCheckpoint):
        size = config.image_size or checkpoint.image_size
        name = f"local-dir:{checkpoint.path}"
        check_vision_transformer(name)
        return build_vision(name, image_size=size, **arguments)
    clip_config = json.loads((checkpoint.path / "open_clip_config.json").read_text(encoding="utf-8"))
    vision = clip_config["model_cfg"]["vision_cfg"]
    if not vision.get("timm_model_name"):
        raise UserError(
            f"encoder: the image tower of {checkpoint.model} is open_clip's own, which timm's layout does not hold;"
            " expected a CLIP model with a timm tower, such as EVA02-Nano-4-32, or a vision encoder"
        )
    size = config.image_size or checkpoint.image_size
    pool = vision.get("timm_pool") or "avg"
    return build_vision(vision["timm_model_name"], image_size=size, global_pool=pool, **arguments)


def load_encoder(config: EvaSegment, checkpoint: VisionCheckpoint | ClipCheckpoint) -> tuple[nn.Module, KeyReport]:
    """Load an encoder, with positions and patches resampled to the settings, and report the use of each weight.

    Raises:
        UserError: If it cannot be built, or a weight does not fit.
    """
    model = build_encoder(config, checkpoint)
    report = KeyReport()
    if isinstance(checkpoint, VisionCheckpoint):
        weights = load_state_dict(checkpoint.path / VISION_WEIGHTS_FILE)
    else:
        visual: Any = load_clip(checkpoint).module.visual
        weights = dict(visual.trunk.state_dict())
    dropped = {"head.": "a head for images", "mask_token": "replaces masked patches, used in pre-training only"}
    rules = TransferRules(dropped, {}, where="encoder", target="the encoder")
    transfer_weights(weights, model, rules, report)
    return model, report


def save_segmenter(
    model: Segmenter, record: HeadRecord, directory: Path, class_names: Sequence[str]
) -> DenseCheckpoint:
    """Write a segmenter as a checkpoint.

    The encoder is in a subfolder in timm's layout. The head's weights and settings are next to it.

    Args:
        model: The segmenter.
        record: Settings of the head.
        directory: Folder of the checkpoint.
        class_names: Names of the classes, in the order of the labels.
    """
    encoder = save_vision(model.encoder.visual, directory / ENCODER_FOLDER)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("encoder.")}
    save_state_dict(weights, directory / HEAD_WEIGHTS_FILE)
    (directory / HEAD_CONFIG_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return DenseCheckpoint.create(
        directory,
        encoder=ENCODER_FOLDER,
        tasks=PREDICTED[record.task],
        class_names=list(class_names),
        image_size=encoder.image_size,
        predictor=EvaSegment.predictor,
    )


def read_segmenter(checkpoint: DenseCheckpoint) -> tuple[Segmenter, HeadRecord]:
    """Load a model written by `save_segmenter`, in evaluation mode.

    Raises:
        UserError: If a file is missing, or the head's weights do not fit.
    """
    record = HeadRecord(**json.loads((checkpoint.path / HEAD_CONFIG_FILE).read_text(encoding="utf-8")))
    encoder = load_vision(checkpoint.path / checkpoint.encoder)
    model: Segmenter = record.settings.build(encoder, len(checkpoint.class_names), frozen=record.frozen)
    weights = load_state_dict(checkpoint.path / HEAD_WEIGHTS_FILE)
    missing, unknown = model.load_state_dict(weights, strict=False)
    lacking = [key for key in missing if not key.startswith("encoder.")]
    if lacking or unknown:
        problem = f"misses {lacking[0]}" if lacking else f"has an unknown {unknown[0]}"
        raise UserError(f"{checkpoint.path / HEAD_WEIGHTS_FILE}: {problem}")
    return model.eval(), record
