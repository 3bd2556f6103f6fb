"""The cascade of detectron2, with the settings of EVA's detection code, on weights and inputs drawn here.

detectron2 is no dependency. Its Python files are enough (no compiled part is used): put a checkout and fvcore, iopath,
omegaconf and cloudpickle on PYTHONPATH, and run this file to write `detectron2_cascade.json`, which the test reads
where detectron2 cannot be imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

CHANNELS, CLASSES, SIDE, STRIDES, HIDDEN, NUM_ROIS = 8, 6, 64, (4, 8, 16, 32), 16, 1000
IOUS = (0.5, 0.6, 0.7)
MODES = ("softmax", "sigmoid", "federated")
ORDER, NUM_FEDERATED = (4, 5, 3, 0, 1, 2), 6  # in which the federated loss takes negative classes, and their number
SCORE, MAX_DETECTIONS = 0.05, 30
FILE = Path(__file__).with_name("detectron2_cascade.json")
SIZES = [(SIDE, SIDE), (SIDE, 56)]
Data = tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]


def draw(shape: tuple[int, ...], number: int) -> Tensor:
    """Return values in (-1, 1) that do not depend on any library's generator."""
    size = torch.Size(shape).numel()
    place = torch.arange(size, dtype=torch.float64) + 1
    return ((place * 12.9898 + number * 78.233).sin() * 43758.5453).frac().reshape(shape).float()


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return weights of a state dict: norms near 1, the rest small."""
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        values = draw(shape, number)
        fan = max(1, values[0].numel() if len(shape) > 1 else 1)
        found[name] = 1 + 0.1 * values if "norm.weight" in name else values / fan**0.5
    return found


def inputs() -> Data:
    """Return maps, proposals and objects of two images."""
    maps = [draw((2, CHANNELS, SIDE // stride, SIDE // stride), 100 + stride) for stride in STRIDES]

    def boxes(count: int, number: int) -> Tensor:
        places = (draw((count, 4), number) + 1) / 2
        corner, size = places[:, :2] * 36, 8 + places[:, 2:] * 12
        return torch.cat([corner, corner + size], dim=1)

    truths, proposals = [], []
    for image, count in enumerate((3, 4)):
        objects = boxes(count, 200 + image)
        masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, objects.round().int().tolist(), strict=True):
            mask[top:bottom, left : (left + right) // 2 + 1] = True
        labels = torch.arange(count) % 4
        truths.append({"labels": labels, "boxes": objects, "masks": masks})
        near = [objects + shift * draw((count, 4), 300 + image) for shift in (1.0, 2.0, 3.0)]
        proposals.append(torch.cat([boxes(20, 400 + image), *near]).clamp(0, 56))
    return maps, proposals, truths


def build(mode: str) -> Any:
    """Build detectron2's heads as EVA's configuration does, at tiny width."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.roi_heads import (
        CascadeROIHeads,
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        MaskRCNNConvUpsampleHead,
    )

    scales = [1 / stride for stride in STRIDES]
    names = [f"p{level}" for level in range(2, 6)]

    def pooler(size: int) -> Any:
        return ROIPooler(output_size=size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")

    shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
    return CascadeROIHeads(
        num_classes=CLASSES, batch_size_per_image=NUM_ROIS, positive_fraction=1.0, box_in_features=names,
        box_pooler=pooler(7), mask_in_features=names, mask_pooler=pooler(14),
        box_heads=[
            FastRCNNConvFCHead(shape, conv_dims=[CHANNELS] * 2, fc_dims=[HIDDEN], conv_norm="LN") for _ in IOUS
        ],
        box_predictors=[
            FastRCNNOutputLayers(
                ShapeSpec(channels=HIDDEN), num_classes=CLASSES, cls_agnostic_bbox_reg=True,
                box2box_transform=Box2BoxTransform(weights=(10 * n, 10 * n, 5 * n, 5 * n)),
                test_score_thresh=SCORE, test_topk_per_image=MAX_DETECTIONS, use_sigmoid_ce=mode != "softmax",
                use_fed_loss=mode == "federated", get_fed_loss_cls_weights=lambda: torch.ones(CLASSES),
                fed_loss_num_classes=NUM_FEDERATED,
            )
            for n in (1, 2, 3)
        ],
        proposal_matchers=[Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in IOUS],
        mask_head=MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=CHANNELS, width=14, height=14), num_classes=CLASSES, conv_dims=[CHANNELS] * 3,
            conv_norm="LN",
        ),
    )  # fmt: skip


def instances(size: tuple[int, int], **fields: Any) -> Any:
    from detectron2.structures import Instances

    return Instances(size, **fields)


def train(heads: Any, data: Data | None = None) -> dict[str, Tensor]:
    """Return detectron2's losses."""
    from detectron2.structures import BitMasks, Boxes
    from detectron2.utils.events import EventStorage

    maps, proposals, truths = data or inputs()
    given = [
        instances((SIDE, SIDE), proposal_boxes=Boxes(box.clone()), objectness_logits=torch.zeros(len(box)))
        for box in proposals
    ]
    targets = [
        instances(
            (SIDE, SIDE),
            gt_classes=one["labels"],
            gt_boxes=Boxes(one["boxes"].clone()),
            gt_masks=BitMasks(one["masks"]),
        )
        for one in truths
    ]
    with EventStorage():
        _, losses = heads.train()(None, named(maps), given, targets)
    return dict(losses)


def detect(heads: Any, data: Data | None = None) -> list[dict[str, Tensor]]:
    """Return detectron2's detections."""
    from detectron2.structures import Boxes

    maps, proposals, _ = data or inputs()
    given = [
        instances(size, proposal_boxes=Boxes(box.clone()), objectness_logits=torch.zeros(len(box)))
        for size, box in zip(SIZES, proposals, strict=True)
    ]
    with torch.no_grad():
        found, _ = heads.eval()(None, named(maps), given)
    return [
        {
            "labels": one.pred_classes,
            "scores": one.scores,
            "boxes": one.pred_boxes.tensor,
            "masks": one.pred_masks[:, 0],
        }
        for one in found
    ]


def named(maps: list[Tensor]) -> dict[str, Tensor]:
    """Return the maps by detectron2's names of the levels."""
    return {f"p{level}": one for level, one in zip(range(2, 6), maps, strict=True)}


def in_order(chances: Tensor, number: int, replacement: bool) -> Tensor:
    """Take classes in `ORDER` where detectron2 draws them."""
    assert not replacement
    return torch.tensor([label for label in ORDER if chances[label] > 0][:number])


def results(mode: str) -> dict[str, Any]:
    """Return what detectron2 computes with our weights: shapes of its state dict, losses and detections."""
    heads = build(mode)
    shapes = {
        name: tuple(value.shape) for name, value in heads.state_dict().items() if "fed_loss_cls_weights" not in name
    }
    heads.load_state_dict(weights(shapes), strict=False)
    maps, proposals, truths = inputs()
    maps = [one.requires_grad_() for one in maps]
    with mock.patch.object(torch, "multinomial", in_order):
        losses = train(heads, (maps, proposals, truths))
    torch.stack(list(losses.values())).sum().backward()
    detections = detect(heads)
    return {
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "losses": {name: float(value.detach()) for name, value in losses.items()},
        "gradients": [float(one.grad.abs().sum()) for one in maps],
        "detections": [
            {
                "labels": one["labels"].tolist(),
                "scores": one["scores"].tolist(),
                "boxes": one["boxes"].tolist(),
                "mask_means": one["masks"].mean(dim=(1, 2)).tolist(),
                "mask_corners": one["masks"][:, 3, 5].tolist(),
            }
            for one in detections
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps({mode: results(mode) for mode in MODES}) + "\n", encoding="utf-8")
