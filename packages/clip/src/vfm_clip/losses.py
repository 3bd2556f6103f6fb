"""Modules of the losses of `clip.train`. They are applied to the features of a whole step."""

# n samples of this process, N of all processes, D width of the joint space

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn

from vfm.train import Metrics
from vfm_clip.loss_parts import CosineLoss, Distillation, DistinctInfoNce, InfoNce, Siglip
from vfm_kernels import gather_with_grad, info_nce, siglip_loss, similarity_distillation

__all__ = ["ClipFeatures", "DistillationLoss", "DistinctInfoNceLoss", "InfoNceLoss", "PairCosineLoss", "SiglipLoss"]


@dataclass(frozen=True)
class ClipFeatures:
    """Inputs of a loss, with unit vectors of this process' samples and the scalars that turn their cosines into logits.

    A loss over the batch of all processes gathers the features itself (`vfm_kernels.gather_with_grad`).
    """

    image: Tensor  # (n, D)
    text: Tensor  # (n, D)
    logit_scale: Tensor  # scalar
    logit_bias: Tensor | None = None  # scalar, if the loss' configuration has a `logit_bias`
    teacher: ClipFeatures | None = None  # the teacher's features of the same samples, without gradient
    caption_hash: Tensor | None = None  # (n,) int64, equal for equal captions
    weight: Tensor | None = None  # (n,), factors of the samples, with mean 1 over all processes


class InfoNceLoss(nn.Module):
    """Mean cross-entropy of each image with all texts and of each text with all images.

    Source: Radford et al. 2021, CLIP (arXiv:2103.00020). Local loss with gathered features as in open_clip.
    """

    def __init__(self, config: InfoNce = InfoNce()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.chunk_size = config.chunk_size

    def forward(self, features: ClipFeatures) -> tuple[Tensor, Metrics]:
        """Compute the loss of this process' samples against the global batch."""
        loss = _contrastive(features, self.chunk_size)
        return loss, {"contrastive_loss": loss.detach()}


class DistinctInfoNceLoss(nn.Module):
    """InfoNCE in which pairs with equal captions are not negatives of each other.

    In a batch of web captions the same text may occur many times, and plain InfoNCE treats each copy as a negative.
    """

    def __init__(self, config: DistinctInfoNce = DistinctInfoNce()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.chunk_size = config.chunk_size

    def forward(self, features: ClipFeatures) -> tuple[Tensor, Metrics]:
        """Compute the loss of this process' samples against the samples of the global batch with other captions."""
        assert features.caption_hash is not None
        loss = _contrastive(features, self.chunk_size, all_groups=gather_with_grad(features.caption_hash))
        return loss, {"contrastive_loss": loss.detach()}


class DistillationLoss(nn.Module):
    """InfoNCE plus the cross-entropy with a teacher's softmax over the same pairs, as in open_clip."""

    def __init__(self, config: Distillation) -> None:
        super().__init__()
        self.chunk_size = config.chunk_size
        self.weight = config.weight

    def forward(self, features: ClipFeatures) -> tuple[Tensor, Metrics]:
        """Compute the weighted sum of both parts, without a gradient of the teacher's features."""
        teacher = features.teacher
        assert teacher
        hard = _contrastive(features, self.chunk_size)
        soft = similarity_distillation(
            (features.image, features.text),
            (teacher.image, teacher.text),
            features.logit_scale,
            teacher.logit_scale,
            all_student=(gather_with_grad(features.image), gather_with_grad(features.text)),
            all_teacher=(gather_with_grad(teacher.image), gather_with_grad(teacher.text)),
            chunk_size=self.chunk_size,
        )
        return hard + self.weight * soft, {"contrastive_loss": hard.detach(), "distill_loss": soft.detach()}


class PairCosineLoss(nn.Module):
    """1 - cosine of each image to its own caption."""

    def __init__(self, config: CosineLoss = CosineLoss()) -> None:  # noqa: B008 (frozen)
        super().__init__()

    def forward(self, features: ClipFeatures) -> tuple[Tensor, Metrics]:
        """Compute the mean over this process' samples. The logit scale has no effect."""
        loss = 1 - (features.image * features.text).sum(dim=-1).mean()
        return loss, {"cosine_loss": loss.detach()}


class SiglipLoss(nn.Module):
    """Sigmoid cross-entropy of every image with every text.

    Source: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training (arXiv:2303.15343).
    """

    def __init__(self, config: Siglip = Siglip()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.chunk_size = config.chunk_size

    def forward(self, features: ClipFeatures) -> tuple[Tensor, Metrics]:
        """Compute the loss of this process' images with the texts of all processes."""
        bias = features.logit_bias
        assert bias is not None
        loss = siglip_loss(
            features.image,
            features.text,
            features.logit_scale,
            bias,
            all_text_features=gather_with_grad(features.text),
            rank=_rank(),
            chunk_size=self.chunk_size,
        )
        return loss, {"contrastive_loss": loss.detach(), "logit_bias": bias.detach()}


def _contrastive(features: ClipFeatures, chunk_size: int | None, all_groups: Tensor | None = None) -> Tensor:
    return info_nce(
        features.image,
        features.text,
        features.logit_scale,
        all_groups=all_groups,
        weights=features.weight,
        chunk_size=chunk_size,
        group=dist.group.WORLD if dist.is_initialized() else None,
    )


def _rank() -> int:
    if not dist.is_initialized():
        return 0
    return dist.get_rank()
