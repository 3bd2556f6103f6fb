"""Cascade R-CNN with box heads that successively refine boxes, and a mask head.

torchvision provides region proposals, matching and RoIAlign, but no cascade, no class-agnostic box regression and no
sigmoid losses. With one stage and a softmax this is torchvision's Mask R-CNN, with three stages the cascade used by
EVA and EVA-02.

Sources: Cai and Vasconcelos 2017 (arXiv:1712.00726), He et al. 2017 (arXiv:1703.06870), and the rules of detectron2.
"""

# B images, R boxes of an image or of all images, N objects of an image, K classes, M side of a mask, S number of stages

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.ops import batched_nms

from vfm_eva.dense.detect.federated import federated_mask
from vfm_eva.dense.detect.heads import BOX_SIDE, MASK_SIDE, BoxHead, MaskHead, split
from vfm_eva.dense.detect.losses import box_loss, mask_loss, mask_targets, sigmoid_loss, softmax_loss
from vfm_eva.dense.detect.objects import DetectedObjects, Matched, Size, TargetObjects, match
from vfm_eva.dense.detect.pooling import pool_boxes
from vfm_eva.dense.detect.settings import Cascade, Selection

MIN_SIDE = 1e-2  # pixels; torchvision drops smaller boxes too


class CascadeHeads(nn.Module):
    """The box heads of all stages, and the mask head.

    Args:
        channels: Channels of the pyramid's maps.
        num_classes: Number of classes, K.
        settings: Settings of the stages.
        strides: Strides of the maps from which boxes are pooled, in pixels.
        masks: Add a mask head.
        aligned, samples: as in `pool_boxes`: True and 0 for detectron2's rules, False and 2 for torchvision's.
        beta: As in `box_loss`: 0 for detectron2's rules, 1/9 for torchvision's.
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
        self.settings = settings
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.aligned = aligned
        self.samples = samples
        self.beta = beta
        self.stages = nn.ModuleList()
        for _ in settings.ious:
            head = BoxHead(
                channels,
                num_classes + 1,
                num_convs=settings.num_convs,
                hidden=settings.hidden,
                prior=settings.prior,
            )
            self.stages.append(head)
        # The weights of the refinements grow with the stage, because better boxes need smaller refinements.
        self.coders = []
        for number in range(1, len(settings.ious) + 1):
            self.coders.append(BoxCoder((10.0 * number, 10.0 * number, 5.0 * number, 5.0 * number)))
        self.sampler = BalancedPositiveNegativeSampler(settings.num_rois, settings.positive_fraction)
        self.mask_head = MaskHead(channels, num_classes, settings.mask_convs) if masks else None

    def losses(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        truths: Sequence[TargetObjects],
        sizes: Sequence[Size],
        order: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all stages by name.

        Args:
            maps: Feature maps by level, (B, C, h, w) each.
            proposals: Proposed boxes of each image, (R, 4).
            truths: Objects of each image.
            sizes: Height and width of each image in pixels.
            order: Order of the classes from `draw_order`, for the federated loss.
        """
        losses: dict[str, Tensor] = {}
        first = matched = [self._sampled(rows, truth) for rows, truth in zip(proposals, truths, strict=True)]
        for stage, coder in enumerate(self.coders):
            boxes = [image.boxes for image in matched]
            scores, deltas = self._run(stage, maps, boxes, scale_gradient=True)
            labels = torch.cat([image.labels for image in matched])
            targets = torch.cat(coder.encode([image.targets for image in matched], boxes))
            losses[f"class_loss_{stage}"] = self._class_loss(scores, labels, order)
            losses[f"box_loss_{stage}"] = box_loss(deltas, targets, labels < self.num_classes, self.beta)
            if stage + 1 < len(self.stages):
                # Detached: as in Cascade R-CNN, a stage is not trained to help the next one.
                refined = self._refined(stage, deltas.detach(), boxes, sizes)
                matched = self._rematched(refined, truths, self.settings.ious[stage + 1])
        if self.mask_head is not None:
            losses["mask_loss"] = self._mask_loss(maps, first, truths)
        return losses

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size], selection: Selection
    ) -> list[DetectedObjects]:
        """Detect the objects of each image.

        Args:
            maps: Feature maps of the pyramid.
            proposals: Proposed boxes of each image, (R, 4).
            sizes: Height and width of each image.
            selection: Limits of the detections.

        Returns:
            Detections of each image, best first, with mean scores over stages and boxes of the last stage.
        """
        total: Tensor | float = 0.0
        boxes = list(proposals)
        for stage in range(len(self.stages)):
            scores, deltas = self._run(stage, maps, boxes)
            total = total + self._probabilities(scores)
            boxes = self._refined(stage, deltas, boxes, sizes)
        assert isinstance(total, Tensor)
        shares = split(total / len(self.stages), boxes)
        detections = [select(share, rows, selection) for share, rows in zip(shares, boxes, strict=True)]
        if self.mask_head is None:
            return detections
        return self._with_masks(maps, detections)

    def _sampled(self, proposals: Tensor, truth: TargetObjects) -> Matched:
        """Sample the boxes of an image for training, from the proposals and the annotated boxes."""
        # With the annotated boxes, so that early in training, when proposals are poor, a head still sees objects.
        boxes = torch.cat([proposals, truth.boxes.to(proposals.dtype)])
        matched = match(boxes, truth, self.num_classes, self.settings.ious[0])
        positive, negative = self.sampler([(matched.labels < self.num_classes).long()])
        return matched[torch.where((positive[0] | negative[0]).bool())[0]]

    def _rematched(self, boxes: Sequence[Tensor], truths: Sequence[TargetObjects], iou: float) -> list[Matched]:
        """Match the boxes of each image again after a refinement."""
        matched = []
        for rows, truth in zip(boxes, truths, strict=True):
            # A refinement may shrink a box to nothing, from which no next refinement can be computed.
            kept = rows[(rows[:, 2:] > rows[:, :2]).all(dim=1)]
            matched.append(match(kept, truth, self.num_classes, iou))
        return matched

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
        clipped = []
        for rows, size in zip(split(moved, boxes), sizes, strict=True):
            # Without the reshape of torchvision's function, whose rank onnxruntime mistakes.
            height, width = size
            clipped.append(rows.clamp(min=0).minimum(rows.new_tensor([width, height, width, height])))
        return clipped

    def _class_loss(self, scores: Tensor, labels: Tensor, order: Tensor | None) -> Tensor:
        if self.settings.loss == "softmax":
            return softmax_loss(scores, labels)
        counted = None
        if self.settings.loss == "federated":
            assert order is not None
            counted = federated_mask(labels, order, self.num_classes, self.settings.num_federated)
        return sigmoid_loss(scores, labels, counted)

    def _probabilities(self, scores: Tensor) -> Tensor:
        if self.settings.loss == "softmax":
            probabilities = scores.softmax(dim=1)
        else:
            probabilities = scores.sigmoid()
        return probabilities[:, : self.num_classes]  # without the background

    def _mask_loss(self, maps: Sequence[Tensor], matched: Sequence[Matched], truths: Sequence[TargetObjects]) -> Tensor:
        assert self.mask_head is not None
        boxes = []
        objects = []
        labels = []
        for image in matched:
            positive = image[image.labels < self.num_classes]
            boxes.append(positive.boxes)
            objects.append(positive.objects)
            labels.append(positive.labels)
        logits = self._masks(maps, boxes)
        masks = [truth.masks for truth in truths if truth.masks is not None]
        targets = mask_targets(masks, boxes, objects, logits.shape[-1], aligned=self.aligned)
        return mask_loss(logits, targets, torch.cat(labels))

    def _masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        assert self.mask_head is not None
        pooled = pool_boxes(maps, self.strides, boxes, MASK_SIDE, aligned=self.aligned, samples=self.samples)
        logits: Tensor = self.mask_head(pooled)
        return logits.float()

    def _with_masks(self, maps: Sequence[Tensor], detections: Sequence[DetectedObjects]) -> list[DetectedObjects]:
        boxes = [image.boxes for image in detections]
        logits = split(self._masks(maps, boxes), boxes)
        with_masks = []
        for image, class_logits in zip(detections, logits, strict=True):
            masks = class_logits[torch.arange(class_logits.shape[0]), image.labels].sigmoid()
            with_masks.append(DetectedObjects(image.labels, image.scores, image.boxes, masks))
        return with_masks


def select(scores: Tensor, boxes: Tensor, selection: Selection) -> DetectedObjects:
    """Select the detections of an image, best first.

    A box can be detected as several classes. Suppression is within a class.

    Args:
        scores: (R, K).
        boxes: (R, 4).
        selection: Limits of the detections.
    """
    usable = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    usable = usable & (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1)  # ONNX has no `&=`
    known = torch.where(usable)[0]  # onnxruntime mistakes the rank of boxes that are selected by a mask
    scores = scores[known]
    boxes = boxes[known]
    rows, labels = torch.where(scores > selection.score)
    scores = scores[rows, labels]
    boxes = boxes[rows]
    if selection.soft:
        best = scores.argsort(descending=True, stable=True)
    else:
        best = batched_nms(boxes, scores, labels, selection.nms)  # sorted by score
    best = best[: selection.max_detections]
    return DetectedObjects(labels[best], scores[best], boxes[best])
