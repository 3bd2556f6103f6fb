"""The losses of `clip.train`: a loss is its configuration, and what it says of the features of one step."""

# n samples of this process, D width of the joint space

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint
from vfm.config import Config
from vfm.stage import Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vfm.models.clip import ClipModel
    from vfm.train import Metrics

SIGLIP_BIAS, SIGLIP_SCALE = -10.0, 10.0  # where the paper starts


@dataclass(frozen=True)
class Features:
    """What a step's loss is taken of: unit vectors of this process' samples, and what makes logits of their cosines."""

    image: Tensor  # (n, D)
    text: Tensor  # (n, D)
    logit_scale: Tensor  # scalar
    logit_bias: Tensor | None = None  # scalar, SigLIP's
    teacher: Features | None = None  # of the same samples, without gradient


class InfoNce(Config):
    """CLIP's: each image picks its text among all texts, each text its image."""

    type: Literal["info_nce"] = Field("info_nce", description="CLIP's softmax over all pairs")

    def prepare(self, clip: ClipModel, warn: Callable[[str], None]) -> None:
        """Tells of what the model has learned and this loss passes over."""
        if getattr(clip.module, "logit_bias", None) is not None:
            warn(f"{clip.name} was trained with SigLIP's sigmoid loss; here the softmax over the batch takes over")

    def of(self, features: Features, chunk_size: int | None) -> tuple[Tensor, Metrics]:
        """The loss of this process' samples against those of all, and its parts; plain, or by chunks of the logits."""
        import torch.distributed as dist

        from vfm_kernels import gather_with_grad, info_nce

        loss = info_nce(
            features.image,
            features.text,
            features.logit_scale,
            all_image_features=gather_with_grad(features.image),
            all_text_features=gather_with_grad(features.text),
            rank=dist.get_rank() if dist.is_initialized() else 0,
            chunk_size=chunk_size,
        )
        return loss, {"contrastive_loss": loss.detach()}


class Distillation(InfoNce):
    """CLIP's, and the same choice among all as a teacher makes it, softly: open_clip's sum of the two."""

    type: Literal["distillation"] = Field(  # type: ignore[assignment]
        "distillation", description="CLIP's, and a teacher's softer choice"
    )
    teacher: Ref[ClipCheckpoint] = Field(description="the model to learn from; it sees the same pixels and tokens")
    weight: float = Field(1.0, gt=0, description="of the teacher's part; the pairs' own has 1")

    def of(self, features: Features, chunk_size: int | None) -> tuple[Tensor, Metrics]:
        """Both parts; no gradient goes to the teacher."""
        from vfm_kernels import gather_with_grad, similarity_distillation

        teacher = features.teacher
        assert teacher
        hard, metrics = super().of(features, chunk_size)
        soft = similarity_distillation(
            (features.image, features.text),
            (teacher.image, teacher.text),
            features.logit_scale,
            teacher.logit_scale,
            all_student=(gather_with_grad(features.image), gather_with_grad(features.text)),
            all_teacher=(gather_with_grad(teacher.image), gather_with_grad(teacher.text)),
            chunk_size=chunk_size,
        )
        return hard + self.weight * soft, {**metrics, "distill_loss": soft.detach()}


class Siglip(Config):
    """SigLIP's: each image and each text are asked by themselves whether they belong together."""

    type: Literal["siglip"] = Field("siglip", description="SigLIP's yes or no of every image with every text")
    logit_bias_init: float | None = Field(
        None,
        description=f"added to every logit at the start; default: the model's own; one without is given"
        f" {SIGLIP_BIAS:g}, with {SIGLIP_SCALE:g} as inverse temperature",
    )

    def prepare(self, clip: ClipModel, warn: Callable[[str], None]) -> None:
        """Gives the model what makes logits, where it has none yet: a bias, and a temperature that goes with it."""
        import math

        import torch

        module, given = clip.module, self.logit_bias_init
        if getattr(module, "logit_bias", None) is None:
            given = SIGLIP_BIAS if given is None else given
            module.logit_bias = torch.nn.Parameter(torch.tensor(given))
            module.logit_scale.data.fill_(math.log(SIGLIP_SCALE))  # type: ignore[operator]
            clip.config["init_logit_bias"] = given  # by which open_clip knows that there is one
        elif given is not None:
            module.logit_bias.data.fill_(given)  # type: ignore[operator]

    def of(self, features: Features, chunk_size: int | None) -> tuple[Tensor, Metrics]:
        """The loss of this process' images with the texts of all; plain, or by chunks of the logits."""
        import torch.distributed as dist

        from vfm_kernels import gather_with_grad, siglip_loss

        bias = features.logit_bias
        assert bias is not None
        loss = siglip_loss(
            features.image,
            features.text,
            features.logit_scale,
            bias,
            all_text_features=gather_with_grad(features.text),
            rank=dist.get_rank() if dist.is_initialized() else 0,
            chunk_size=chunk_size,
        )
        return loss, {"contrastive_loss": loss.detach(), "logit_bias": bias.detach()}


AnyLoss = Annotated[InfoNce | Siglip | Distillation, Field(discriminator="type")]
