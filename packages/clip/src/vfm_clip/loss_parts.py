"""Configurations of the losses of `clip.train`, without torch. A plugin can add choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from vfm.plugin import ClipCheckpoint, Part, Ref


@dataclass(frozen=True)
class LogitBias:
    """How a loss initialises the bias of the logits.

    Attributes:
        init: Initial bias. None: the model's bias, or `new` if the model has none.
        new: Initial bias for a model without a bias.
        new_scale: Inverse temperature that goes with a new bias.
    """

    init: float | None = None
    new: float = -10.0
    new_scale: float = 10.0


class ClipLoss(Part):
    """Base class of the losses of `clip.train`. `build()` returns a module from `ClipFeatures` to (loss, metrics).

    The module has no parameters. The learned temperature and bias belong to the model.
    """

    # A loss without logits has no negatives either, so that only a locked text tower prevents a collapse.
    without_logits: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False  # `ClipFeatures.weight` weights the samples

    @property
    def logit_bias(self) -> LogitBias | None:
        """The bias that the logits need. None: the loss has no bias."""
        return None

    @property
    def teacher_ref(self) -> Ref[ClipCheckpoint] | None:
        """The model whose features the loss needs as `ClipFeatures.teacher`."""
        return None

    def chance_level(self, batch_size: int) -> tuple[float, str] | None:
        """Compute the metric `contrastive_loss` of random guesses.

        Args:
            batch_size: Samples of all processes.

        Returns:
            The loss and its formula. None: unknown.
        """
        return None


class _ChunkedLoss(ClipLoss):
    chunk_size: int | None = Field(
        None, ge=1, description="rows of logits in memory at once, if not all of them fit, with the same result"
    )


class InfoNce(_ChunkedLoss):
    """CLIP's softmax over all pairs."""

    type: Literal["info_nce"] = Field("info_nce", description="CLIP's softmax over all pairs")
    takes_weights: ClassVar[bool] = True
    work: ClassVar[str] = "vfm_clip.losses:InfoNceLoss"

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Compute the loss of uniform logits."""
        return math.log(batch_size), f"ln {batch_size}"


class DistinctInfoNce(_ChunkedLoss):
    """CLIP's softmax, except that pairs with the same caption are not negatives of each other."""

    type: Literal["distinct_info_nce"] = Field(
        "distinct_info_nce", description="CLIP's softmax in which pairs with equal captions are not negatives"
    )
    takes_weights: ClassVar[bool] = True
    work: ClassVar[str] = "vfm_clip.losses:DistinctInfoNceLoss"

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Compute the loss of uniform logits over captions that are all different.

        Repeated captions would lower it.
        """
        return math.log(batch_size), f"ln {batch_size}"


class Distillation(_ChunkedLoss):
    """CLIP's softmax over all pairs, plus the cross-entropy with a teacher's softmax."""

    type: Literal["distillation"] = Field(
        "distillation", description="CLIP's softmax, plus the cross-entropy with a teacher's softmax"
    )
    work: ClassVar[str] = "vfm_clip.losses:DistillationLoss"
    teacher: Ref[ClipCheckpoint] = Field(description="model to learn from, with the student's image size and tokenizer")
    weight: float = Field(1.0, gt=0, description="weight of the teacher's part, relative to the contrastive part")

    @property
    def teacher_ref(self) -> Ref[ClipCheckpoint]:
        """The model to learn from."""
        return self.teacher

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Compute the contrastive part's loss of uniform logits."""
        return math.log(batch_size), f"ln {batch_size}"


class CosineLoss(ClipLoss):
    """1 - cosine of each pair, without other pairs. The text tower must be locked: its embeddings are the targets."""

    type: Literal["cosine"] = Field(
        "cosine", description="1 - cosine of each image and its caption, for a locked text tower"
    )
    work: ClassVar[str] = "vfm_clip.losses:PairCosineLoss"
    without_logits: ClassVar[bool] = True


class Siglip(_ChunkedLoss):
    """SigLIP's sigmoid for every image with every text."""

    type: Literal["siglip"] = Field("siglip", description="SigLIP's sigmoid of every image with every text")
    work: ClassVar[str] = "vfm_clip.losses:SiglipLoss"
    logit_bias_init: float | None = Field(
        None,
        description="initial bias of the logits (default: the model's bias). A model without a bias gets"
        f" {LogitBias.new:g}, and an inverse temperature of {LogitBias.new_scale:g}",
    )

    @property
    def logit_bias(self) -> LogitBias:
        """The paper's initial values."""
        return LogitBias(self.logit_bias_init)

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Compute the loss of the best constant logit. It corresponds to a probability of 1/N."""
        size = batch_size
        rest = (size - 1) * math.log1p(1 / (size - 1)) if size > 1 else 0.0
        return math.log(size) + rest, f"ln {size} + 1"
