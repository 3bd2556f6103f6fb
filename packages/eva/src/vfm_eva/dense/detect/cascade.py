"""Cascade R-CNN: box heads that refine each other's boxes, and a mask head.

torchvision has the region proposals, the matching and RoIAlign; it has no cascade, no regression that all classes
share, and no sigmoid losses. With one stage and a softmax this is torchvision's Mask R-CNN, with three stages the
cascade that EVA and EVA-02 used.

Sources: Cai and Vasconcelos 2017 (arXiv:1712.00726); He et al. 2017 (arXiv:1703.06870); the rules of detectron2.
"""

# B images, R boxes of one or all of them, N objects of an image, K classes, M side of a mask, S number of stages

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from vfm_eva.dense.detect.federated import federated_mask
from vfm_eva.dense.detect.heads import BOX_SIDE, MASK_SIDE, BoxHead, MaskHead, split
from vfm_eva.dense.detect.losses import box_loss, mask_loss, mask_targets, sigmoid_loss, softmax_loss
from vfm_eva.dense.detect.pooling import pool_boxes
from vfm_eva.dense.detect.settings import Cascade, Selection

MIN_SIDE = 1e-2  # pixels; torchvision drops smaller boxes too
Size = tuple[int, int]
"""Height and width of an image."""


@dataclass(frozen=True)
class Truth:
    """The objects of one image: labels (N,), boxes (N, 4), masks (N, H, W) or None."""

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Found:
    """The detections of one image: labels (R,), scores (R,), boxes (R, 4), and masks (R, M, M) in their boxes."""

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Matched:
    """Boxes of one image with the object that each one overlaps most.

    Attributes:
        boxes: (R, 4).
        labels: (R,), K where no object is near.
        objects: number of the object, (R,), 0 where there is none.
        targets: box of the object, (R, 4).
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    targets: Tensor

    def __getitem__(self, rows: Tensor) -> Matched:
        return Matched(self.boxes[rows], self.labels[rows], self.objects[rows], self.targets[rows])


def match(boxes: Tensor, truth: Truth, num_classes: int, iou: float) -> Matched:
    """Match boxes, (R, 4), with the objects of their image."""
    if not len(truth.labels):
        none = torch.full((len(boxes),), num_classes, dtype=torch.int64, device=boxes.device)
        return Matched(boxes, none, torch.zeros_like(none), boxes)
    best, objects = box_iou(truth.boxes, boxes).max(dim=0)
    labels = truth.labels[objects].masked_fill(best < iou, num_classes)
    return Matched(boxes, labels, objects, truth.boxes[objects])


class CascadeHeads(nn.Module):
    """The stages and the mask head.

    Args:
        channels: of the pyramid's maps.
        num_classes: K.
        settings: of the stages.
        strides: of the maps that boxes are read from, in pixels.
        masks: have a mask head.
        aligned, samples: of `pool_boxes`; True and 0 as in detectron2, False and 2 as in torchvision.
        beta: of `box_loss`; 0 as in detectron2, 1/9 as in torchvision.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        settings: Cascade,
        strides: Sequence[int],
        *,
        masks: bool = True,
        aligned: bool = True,
        samples: int = 0,
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        self.settings, self.num_classes, self.strides = settings, num_classes, tuple(strides)
        self.aligned, self.samples, self.beta = aligned, samples, beta
        self.stages = nn.ModuleList(
            BoxHead(
                channels,
                num_classes + 1,
                num_convs=settings.num_convs,
                hidden=settings.hidden,
                prior=settings.prior,
            )
            for _ in settings.ious
        )
        # The weights of the refinements grow with the stage, since better boxes leave smaller ones.
        self.coders = [BoxCoder((10.0 * n, 10.0 * n, 5.0 * n, 5.0 * n)) for n in range(1, len(settings.ious) + 1)]
        self.sampler = BalancedPositiveNegativeSampler(settings.num_rois, settings.positive_fraction)
        self.mask_head = MaskHead(channels, num_classes, settings.mask_convs) if masks else None

    def losses(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        truths: Sequence[Truth],
        sizes: Sequence[Size],
        order: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of all stages by name.

        Args:
            maps: of each level, (B, C, h, w).
            proposals: of each image, (R, 4).
            truths: of each image.
            sizes: of the images, in pixels.
            order: of the classes, from `draw_order`, for the federated loss.
        """
        found: dict[str, Tensor] = {}
        boxes: list[Tensor] = []
        first = matched = [self._sampled(one, truth) for one, truth in zip(proposals, truths, strict=True)]
        for stage, (coder, iou) in enumerate(zip(self.coders, self.settings.ious, strict=True)):
            if stage:
                boxes = [one[_not_empty(one)] for one in boxes]
                matched = [match(one, truth, self.num_classes, iou) for one, truth in zip(boxes, truths, strict=True)]
            boxes = [one.boxes for one in matched]
            scores, deltas = self._run(stage, maps, boxes, scale_gradient=True)
            labels = torch.cat([one.labels for one in matched])
            targets = torch.cat(coder.encode([one.targets for one in matched], boxes))
            found[f"class_loss_{stage}"] = self._class_loss(scores, labels, order)
            found[f"box_loss_{stage}"] = box_loss(deltas, targets, labels < self.num_classes, self.beta)
            boxes = self._refined(stage, deltas.detach(), boxes, sizes)
        if self.mask_head is not None:
            found["mask_loss"] = self._mask_loss(maps, first, truths)
        return found

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size], selection: Selection
    ) -> list[Found]:
        """Return the detections of each image, best first: mean score of the stages, boxes of the last one."""
        total: Tensor | float = 0.0
        boxes = list(proposals)
        for stage in range(len(self.stages)):
            scores, deltas = self._run(stage, maps, boxes)
            total = total + self._probabilities(scores)
            boxes = self._refined(stage, deltas, boxes, sizes)
        assert isinstance(total, Tensor)
        shares = split(total / len(self.stages), boxes)
        found = [select(share, one, selection) for share, one in zip(shares, boxes, strict=True)]
        return found if self.mask_head is None else self._with_masks(maps, found)

    def _sampled(self, proposals: Tensor, truth: Truth) -> Matched:
        """Return the boxes of an image that are trained: objects' own boxes are among the candidates."""
        boxes = torch.cat([proposals, truth.boxes.to(proposals.dtype)])
        matched = match(boxes, truth, self.num_classes, self.settings.ious[0])
        positive, negative = self.sampler([(matched.labels < self.num_classes).long()])
        return matched[torch.where((positive[0] | negative[0]).bool())[0]]

    def _run(
        self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor], *, scale_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        pooled = pool_boxes(maps, self.strides, boxes, BOX_SIDE, aligned=self.aligned, samples=self.samples)
        if scale_gradient and pooled.requires_grad and len(self.stages) > 1:
            # The losses of the stages are added, so the maps get the mean of their gradients.
            pooled.register_hook(lambda gradient: gradient / len(self.stages))  # type: ignore[no-untyped-call]
        scores, deltas = self.stages[stage](pooled)
        return scores.float(), deltas.float()

    def _refined(self, stage: int, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
        moved = self.coders[stage].decode(deltas, list(boxes))[:, 0]
        return [clip_boxes_to_image(one, size) for one, size in zip(split(moved, boxes), sizes, strict=True)]

    def _class_loss(self, scores: Tensor, labels: Tensor, order: Tensor | None) -> Tensor:
        if self.settings.loss == "softmax":
            return softmax_loss(scores, labels)
        counted = None
        if self.settings.loss == "federated":
            assert order is not None
            counted = federated_mask(labels, order, self.num_classes, self.settings.num_federated)
        return sigmoid_loss(scores, labels, counted)

    def _probabilities(self, scores: Tensor) -> Tensor:
        found = scores.softmax(dim=1) if self.settings.loss == "softmax" else scores.sigmoid()
        return found[:, : self.num_classes]

    def _mask_loss(self, maps: Sequence[Tensor], matched: Sequence[Matched], truths: Sequence[Truth]) -> Tensor:
        assert self.mask_head is not None
        positive = [one[one.labels < self.num_classes] for one in matched]
        boxes = [one.boxes for one in positive]
        logits = self._masks(maps, boxes)
        masks = [truth.masks for truth in truths if truth.masks is not None]
        objects = [one.objects for one in positive]
        targets = mask_targets(masks, boxes, objects, logits.shape[-1], aligned=self.aligned)
        return mask_loss(logits, targets, torch.cat([one.labels for one in positive]))

    def _masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        assert self.mask_head is not None
        pooled = pool_boxes(maps, self.strides, boxes, MASK_SIDE, aligned=self.aligned, samples=self.samples)
        logits: Tensor = self.mask_head(pooled)
        return logits.float()

    def _with_masks(self, maps: Sequence[Tensor], found: Sequence[Found]) -> list[Found]:
        boxes = [one.boxes for one in found]
        logits = split(self._masks(maps, boxes), boxes)
        return [
            Found(one.labels, one.scores, one.boxes, mask[torch.arange(len(mask)), one.labels].sigmoid())
            for one, mask in zip(found, logits, strict=True)
        ]


def select(scores: Tensor, boxes: Tensor, selection: Selection) -> Found:
    """Return the detections of an image, best first, from the scores (R, K) of its boxes (R, 4).

    A box may be found as several classes; suppression is within a class.
    """
    usable = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    usable &= (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1)
    scores, boxes = scores[usable], boxes[usable]
    rows, labels = torch.where(scores > selection.score)
    scores, boxes = scores[rows, labels], boxes[rows]
    if selection.soft:
        kept = scores.argsort(descending=True, stable=True)
    else:
        kept = batched_nms(boxes, scores, labels, selection.nms)
    kept = kept[: selection.max_detections]
    return Found(labels[kept], scores[kept], boxes[kept])


def _not_empty(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
