"""Configurations of the losses of `diva.tune`, without torch."""

# B images of a forward pass

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from vfm.plugin import CropScale, Part


class Loss(Part):
    """Base class of the losses on the denoised images.

    `build()` returns a function of a denoiser and of the `Denoised` images of a batch (`tune.loss`). The function
    returns the loss and the denoising error of each image, (B,) each.
    """

    compares_images: ClassVar[bool] = False  # the images of a forward pass, each at a single time


class DenoisingLoss(Loss):
    """The denoising error itself (DIVA, GenHancer, un2CLIP)."""

    type: Literal["denoising"] = Field("denoising", description="the denoising error (DIVA, GenHancer, un2CLIP)")
    work: ClassVar[str] = "vfm_diva.tune.loss:denoising_loss"


class ViewLoss(Loss):
    """Settings of the losses that need a second view of each image: a random crop of CLIP's own crop."""

    view_scale: CropScale = Field((0.9, 1.0), description="share of the area that the second crop keeps")
    view_ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.9, 1.1), description="smallest and largest aspect ratio of the second crop"
    )


class ContrastiveLoss(ViewLoss):
    """Contrast of predictions with an image's own tokens and with the tokens of the other images of the pass (DCR).

    B images of a forward pass need B x B + B predictions, so the gradient depends on `micro_batch_size`.
    """

    type: Literal["contrastive"] = Field(
        "contrastive", description="predictions with an image's own tokens against predictions with others' (DCR)"
    )
    temperature: float = Field(0.1, gt=0, description="divisor of the cosines of predictions")
    work: ClassVar[str] = "vfm_diva.tune.loss:contrastive_loss"
    compares_images: ClassVar[bool] = True
