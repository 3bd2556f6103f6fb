"""The losses of `clip.train`: configurations only, without torch. A plugin can add choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from vfm.plugin import ClipCheckpoint, Part, Ref


@dataclass(frozen=True)
class LogitBias:
    """How a loss initialises the bias of the logits.

    init: initial bias; None: the model's own, or `new` if the model has none.
    new: bias of a model that has none.
    new_scale: inverse temperature that comes with a new bias.
    """

    init: float | None = None
    new: float = -10.0
    new_scale: float = 10.0


class ClipLoss(Part):
    """Base class of the losses of `clip.train`. `build()` returns a module from `ClipFeatures` to (loss, metrics).

    The module has no parameters. The learned temperature and bias belong to the model.
    """

    without_logits: ClassVar[bool] = (
        False  # no other pairs either, so that only a locked text tower prevents a collapse
    )

    @property
    def logit_bias(self) -> LogitBias | None:
        """The bias that the logits need; None: the loss has no bias."""
        return None

    @property
    def teacher_ref(self) -> Ref[ClipCheckpoint] | None:
        """The model whose features the loss needs as `ClipFeatures.teacher`."""
        return None

    def chance_level(self, batch_size: int) -> tuple[float, str] | None:
        """Return the value of the metric `contrastive_loss` for random guesses, and its formula; None: unknown."""
        return None


class _ChunkedLoss(ClipLoss):
    chunk_size: int | None = Field(
        None, ge=1, description="rows of logits in memory at once, if all of them do not fit; the result is the same"
    )


class InfoNce(_ChunkedLoss):
    """CLIP's softmax over all pairs."""

    type: Literal["info_nce"] = Field("info_nce", description="CLIP's softmax over all pairs")
    work: ClassVar[str] = "vfm_clip.losses:InfoNceLoss"

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Return the loss of uniform logits."""
        return math.log(batch_size), f"ln {batch_size}"


class DistinctInfoNce(_ChunkedLoss):
    """CLIP's softmax without the other pairs of the batch that have the same caption."""

    type: Literal["distinct_info_nce"] = Field(
        "distinct_info_nce", description="CLIP's, but pairs with equal captions are no wrong answers to each other"
    )
    work: ClassVar[str] = "vfm_clip.losses:DistinctInfoNceLoss"

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Return the loss of uniform logits where no caption is repeated; repeated ones lower it."""
        return math.log(batch_size), f"ln {batch_size}"


class Distillation(_ChunkedLoss):
    """CLIP's softmax over all pairs, plus the cross-entropy with a teacher's softmax."""

    type: Literal["distillation"] = Field("distillation", description="CLIP's, plus the distance to a teacher's logits")
    work: ClassVar[str] = "vfm_clip.losses:DistillationLoss"
    teacher: Ref[ClipCheckpoint] = Field(
        description="model to learn from; its image size and tokenizer must be the student's"
    )
    weight: float = Field(1.0, gt=0, description="weight of the teacher's part; the contrastive part has 1")

    @property
    def teacher_ref(self) -> Ref[ClipCheckpoint]:
        """The model to learn from."""
        return self.teacher

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Return the contrastive part's loss of uniform logits."""
        return math.log(batch_size), f"ln {batch_size}"


class CosineLoss(ClipLoss):
    """1 - cosine of each pair, without other pairs: the text embeddings are targets, so their tower must be locked."""

    type: Literal["cosine"] = Field(
        "cosine", description="1 - cosine of each image to its caption, for a locked text tower"
    )
    work: ClassVar[str] = "vfm_clip.losses:PairCosineLoss"
    without_logits: ClassVar[bool] = True


class Siglip(_ChunkedLoss):
    """SigLIP's sigmoid for every image with every text."""

    type: Literal["siglip"] = Field("siglip", description="SigLIP's sigmoid for every image with every text")
    work: ClassVar[str] = "vfm_clip.losses:SiglipLoss"
    logit_bias_init: float | None = Field(
        None,
        description="initial bias of the logits; default: the model's own. A model without one gets"
        f" {LogitBias.new:g}, and an inverse temperature of {LogitBias.new_scale:g}",
    )

    @property
    def logit_bias(self) -> LogitBias:
        """The paper's initial values."""
        return LogitBias(self.logit_bias_init)

    def chance_level(self, batch_size: int) -> tuple[float, str]:
        """Return the loss of the best constant logit, that of a probability of 1/N."""
        size = batch_size
        rest = (size - 1) * math.log1p(1 / (size - 1)) if size > 1 else 0.0
        return math.log(size) + rest, f"ln {size} + 1"
