"""Region proposals by torchvision's network with detectron2's anchors and losses."""

# A anchors per location, L levels

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from vfm_eva.dense.detect.settings import Proposals

ANCHOR_SCALE = 8.0  # side of a level's anchors in units of its stride


class ExactAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors whose corners are not rounded to whole pixels, as in detectron2."""

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (the signature of torchvision)
    ) -> Tensor:
        """Compute the anchors around the origin, (A, 4)."""
        ratios = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sides = torch.tensor(scales, dtype=dtype, device=device)
        widths = (sides / ratios[:, None]).flatten()
        heights = (sides * ratios[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


class ProposalHead(RPNHead):  # type: ignore[misc]  # torchvision has no types
    """torchvision's head with outputs in fp32, so that boxes are computed in fp32 for any precision of the maps."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict objectness and refinements for each level."""
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]  # torchvision has no types
    """torchvision's network with an L1 box loss and both losses divided by the configured number of samples."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute the objectness loss and the box loss."""
        positive, negative = (torch.cat(images).bool() for images in self.fg_bg_sampler(labels))
        # detectron2 divides by the number that is configured, torchvision by the number that was sampled.
        number = self.fg_bg_sampler.batch_size_per_image * len(labels)
        wanted = torch.cat(labels)
        sampled = positive | negative
        deltas = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        classes = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], wanted[sampled], reduction="sum")
        return classes / number, deltas / number


def build_proposals(settings: Proposals, channels: int, strides: tuple[int, ...]) -> ProposalNetwork:
    """Build the network for maps with these strides."""
    sides = tuple((ANCHOR_SCALE * stride,) for stride in strides)
    ratios = (tuple(settings.aspect_ratios),) * len(strides)
    anchors = ExactAnchors(sides, ratios)
    head = ProposalHead(channels, len(settings.aspect_ratios), settings.num_convs)
    # Evaluation uses fewer candidates per level than training, as in detectron2.
    before = {"training": settings.before_nms, "testing": max(1, settings.before_nms // 2)}
    after = {"training": settings.num_proposals, "testing": settings.num_proposals}
    # Faster R-CNN's rules: objects from an IoU of 0.7, background below 0.3, and half of the sampled anchors objects at
    # most.
    return ProposalNetwork(anchors, head, 0.7, 0.3, settings.num_samples, 0.5, before, after, settings.nms)
