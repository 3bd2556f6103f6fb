"""Compute the denoising error of images, or a contrast of predictions."""

# B images, N times, C channels, h side of the denoised sample, F = C h h

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.denoiser import Denoiser, error_over_times
from vfm_diva.parts.loss_parts import ContrastiveLoss, DenoisingLoss


@dataclass(frozen=True)
class Denoised:
    """Images of a forward pass, to be denoised.

    Attributes:
        x0: Clean samples, (B, C, h, h).
        noise: Noise at each time, (B, N, C, h, h).
        times: Diffusion times, (B, N).
        conditioning: Conditioning of each image, or of each time of each image.
        view: Conditioning on a second crop of each image, if the loss needs one.
    """

    x0: Tensor
    noise: Tensor
    times: Tensor
    conditioning: Conditioning
    view: Conditioning | None = None


ImageLoss = Callable[[Denoiser, Denoised], tuple[Tensor, Tensor]]
"""Returns the loss and the denoising error of each image, (B,) each."""


def denoising_loss(config: DenoisingLoss) -> ImageLoss:
    """Create the loss that is the denoising error, averaged over the times."""

    def loss(denoiser: Denoiser, images: Denoised) -> tuple[Tensor, Tensor]:
        error = error_over_times(denoiser, images.x0, images.noise, images.times, images.conditioning)
        return error, error

    return loss


def contrastive_loss(config: ContrastiveLoss) -> ImageLoss:
    """Create the loss `contrast` of the predictions for each image with the tokens of every image of the pass."""

    def loss(denoiser: Denoiser, images: Denoised) -> tuple[Tensor, Tensor]:
        assert images.view is not None
        count = len(images.x0)
        x0 = images.x0
        noise = images.noise[:, 0]
        times = images.times[:, 0]
        rows = torch.arange(count, device=x0.device).repeat_interleave(count)  # the noisy sample of each prediction
        all_pairs = images.conditioning.map(lambda x: x.repeat(count, *[1] * (x.ndim - 1)))
        predicted, target = denoiser.predict_target(x0[rows], noise[rows], times[rows], all_pairs)
        matrix = predicted.view(count, count, *x0.shape[1:])
        target = target[::count]
        with_own_tokens = matrix.diagonal(dim1=0, dim2=1).movedim(-1, 0)
        error = (with_own_tokens.float() - target.float()).square().flatten(1).mean(dim=1)
        of_view, _ = denoiser.predict_target(x0, noise, times, images.view)
        return contrast(matrix, of_view, target, config.temperature), error

    return loss


def contrast(predicted: Tensor, of_view: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Compute how well an image's prediction stands out among predictions with other images' tokens.

    The anchor of image i is the prediction for its noisy sample with its own tokens. It has two positives, each with
    half of the weight in a softmax of cosines: the prediction with the tokens of a second crop, and the target itself.
    The negatives are the predictions for the same noisy sample with the tokens of the other images.

    Args:
        predicted: Predictions for the noisy sample of image i with the tokens of image j, (B, B, C, h, h).
        of_view: Predictions with the tokens of a second crop, (B, C, h, h).
        target: Target of the denoiser, (B, C, h, h).
        temperature: Divisor of the cosines.

    Returns:
        fp32 (B,).

    Source: Han et al. 2026, DCR (arXiv:2603.04803). Its released code compares with the target of another kind of
    denoiser. This is corrected here: the target is the denoiser's own.
    """
    every = F.normalize(predicted.float().flatten(2), dim=-1)  # (B, B, F)
    anchor = every.diagonal(dim1=0, dim2=1).T  # (B, F)
    positives = torch.stack(
        [(anchor * F.normalize(x.float().flatten(1), dim=-1)).sum(dim=-1) for x in (of_view, target)], dim=1
    )
    same = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    # An image's own prediction is the anchor and not a negative.
    negatives = torch.einsum("if,ijf->ij", anchor, every).masked_fill(same, -torch.inf)
    total = torch.cat([positives, negatives], dim=1).div(temperature).logsumexp(dim=1)
    return total - positives.mean(dim=1) / temperature
