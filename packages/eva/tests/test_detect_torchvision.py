"""With one stage and a softmax, the detector's heads are torchvision's Mask R-CNN, on the same weights."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from vfm_eva.dense.detect.cascade import CascadeHeads
from vfm_eva.dense.detect.objects import TargetObjects
from vfm_eva.dense.detect.proposals import build_proposals
from vfm_eva.dense.detect.settings import Cascade, Proposals, Selection

CHANNELS, CLASSES, SIDE, STRIDES, HIDDEN = 16, 5, 64, (4, 8, 16, 32), 24
SETTINGS = Cascade(ious=[0.5], num_rois=32, num_convs=2, hidden=HIDDEN, mask_convs=2)


def norm(channels: int) -> nn.Module:
    return LayerNorm2d(channels, eps=1e-6)


def torchvisions(selection: Selection) -> RoIHeads:
    names = [str(level) for level in range(len(STRIDES))]
    return RoIHeads(
        MultiScaleRoIAlign(names, 7, 2),
        FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 2, [HIDDEN], norm),
        FastRCNNPredictor(HIDDEN, CLASSES + 1),
        0.5, 0.5, 32, 0.25, None, selection.score, selection.nms, selection.max_detections,
        MultiScaleRoIAlign(names, 14, 2),
        MaskRCNNHeads(CHANNELS, [CHANNELS] * 2, 1, norm),
        MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES + 1),
    )  # fmt: skip


def same_weights(ours: CascadeHeads, theirs: RoIHeads) -> None:
    """Copy our weights; torchvision's background is class 0, and it has refinements of its own for each class."""
    stage = ours.stages[0]
    theirs.box_head.load_state_dict(
        {
            **{
                key.replace("convs.", "", 1): value
                for key, value in stage.state_dict().items()
                if key.startswith("convs.")
            },
            f"{len(stage.convs) + 1}.weight": stage.fc.weight,
            f"{len(stage.convs) + 1}.bias": stage.fc.bias,
        }
    )
    theirs.box_predictor.load_state_dict(
        {
            "cls_score.weight": stage.scores.weight.roll(1, dims=0),
            "cls_score.bias": stage.scores.bias.roll(1, dims=0),
            "bbox_pred.weight": stage.deltas.weight.repeat(CLASSES + 1, 1),
            "bbox_pred.bias": stage.deltas.bias.repeat(CLASSES + 1),
        }
    )
    head = ours.mask_head
    theirs.mask_head.load_state_dict({key.removeprefix("convs."): v for key, v in head.convs.state_dict().items()})
    empty = torch.zeros_like(head.masks.weight[:1])
    theirs.mask_predictor.load_state_dict(
        {
            "conv5_mask.weight": head.upsample.weight,
            "conv5_mask.bias": head.upsample.bias,
            "mask_fcn_logits.weight": torch.cat([empty, head.masks.weight]),
            "mask_fcn_logits.bias": torch.cat([head.masks.bias[:1] * 0, head.masks.bias]),
        }
    )


@pytest.fixture(scope="module")
def heads() -> tuple[CascadeHeads, RoIHeads]:
    torch.manual_seed(0)
    ours = CascadeHeads(CHANNELS, CLASSES, SETTINGS, STRIDES, aligned=False, samples=2, beta=1 / 9)
    with torch.no_grad():
        for parameter in ours.parameters():  # initial weights give the same score to all boxes
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs = torchvisions(Selection(score=0.05, max_detections=40))
    same_weights(ours, theirs)
    return ours, theirs


def inputs() -> tuple[list[Tensor], list[Tensor], list[TargetObjects]]:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, CHANNELS, SIDE // stride, SIDE // stride, generator=generator) for stride in STRIDES]

    def boxes(count: int) -> Tensor:
        corners = SIDE * torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
        return torch.cat([corners[:, 0], (corners[:, 1]).clamp(min=corners[:, 0] + 2)], dim=1).clamp(0, SIDE)

    truths = []
    for count in (3, 4):
        found = boxes(count)
        masks = torch.zeros(count, SIDE, SIDE)
        for mask, (left, top, right, bottom) in zip(masks, found.round().int().tolist(), strict=True):
            mask[top:bottom, left : (left + right) // 2 + 1] = 1
        truths.append(TargetObjects(torch.randint(CLASSES, (count,), generator=generator), found, masks))
    near = [
        torch.cat([boxes(30), one.boxes + 3 * torch.rand(len(one.boxes), 4, generator=generator)]) for one in truths
    ]
    return maps, near, truths


def as_features(maps: list[Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((str(n), one) for n, one in enumerate(maps))


def test_losses_and_gradients_equal_torchvisions(heads):
    ours, theirs = heads
    maps, proposals, truths = inputs()
    sizes = [(SIDE, SIDE)] * 2
    targets = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks} for t in truths]
    torch.manual_seed(3)
    found = ours.train().losses(maps, proposals, truths, sizes)
    torch.manual_seed(3)
    _, expected = theirs.train()(as_features(maps), list(proposals), sizes, targets)
    pairs = {"class_loss_0": "loss_classifier", "box_loss_0": "loss_box_reg", "mask_loss": "loss_mask"}
    assert set(found) == set(pairs)
    for name, other in pairs.items():
        torch.testing.assert_close(found[name], expected[other], rtol=1e-5, atol=1e-6)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    torch.testing.assert_close(ours.stages[0].fc.weight.grad, theirs.box_head[-2].weight.grad, rtol=1e-4, atol=1e-6)


def test_detections_and_masks_equal_torchvisions(heads):
    ours, theirs = heads
    maps, proposals, _ = inputs()
    sizes = [(SIDE, SIDE), (SIDE, 50)]
    selection = Selection(score=0.05, max_detections=40)
    with torch.no_grad():
        found = ours.eval().detect(maps, proposals, sizes, selection)
        expected, _ = theirs.eval()(as_features(maps), proposals, sizes)
    for one, other in zip(found, expected, strict=True):
        assert len(one.labels) > 10
        assert torch.equal(one.labels + 1, other["labels"])
        torch.testing.assert_close(one.scores, other["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.boxes, other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.masks, other["masks"][:, 0], rtol=1e-4, atol=1e-5)


def test_proposals_equal_torchvisions():
    """Anchors of torchvision are rounded; with sides that need no rounding the proposals are the same."""
    torch.manual_seed(0)
    settings = Proposals(aspect_ratios=[1.0], num_convs=2, before_nms=60, num_proposals=40)
    strides = (4, 8, 16)
    ours = build_proposals(settings, CHANNELS, strides)
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in strides), ((1.0,),) * len(strides))
    number = {"training": 60, "testing": 30}
    theirs = RegionProposalNetwork(
        anchors, RPNHead(CHANNELS, 1, 2), 0.7, 0.3, 256, 0.5, number, {"training": 40, "testing": 40}, 0.7
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.randn(2, CHANNELS, SIDE // stride, SIDE // stride) for stride in strides]
    images = ImageList(torch.zeros(2, 3, SIDE, SIDE), [(SIDE, SIDE), (40, SIDE)])
    with torch.no_grad():
        found, expected = (network.eval()(images, as_features(maps))[0] for network in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
