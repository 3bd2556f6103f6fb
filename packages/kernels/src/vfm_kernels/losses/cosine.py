"""EVA's objective, the negative cosine between predicted and teacher features on masked patches, in fp32."""

# B batch, N tokens, D width

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_kernels.dispatch.dispatch import fused, launchers, runs_triton
from vfm_kernels.dispatch.library import Op
from vfm_kernels.dispatch.precision import at_least_fp32

EPS = 1e-8  # lower bound of a feature's length, as in torch's cosine


def token_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the cosine of each predicted token with its target, for the loss and for a report's maps of patches.

    Args:
        prediction: (..., D), any float dtype.
        target: (..., D).

    Returns:
        (...), fp32 (fp64 if either is) under any autocast: bf16 would quantise a cosine of 0.75 to steps of 0.004.
    """
    return F.cosine_similarity(at_least_fp32(prediction), at_least_fp32(target), dim=-1)


def masked_cosine_loss(prediction: Tensor, target: Tensor, bool_mask: Tensor | None = None) -> Tensor:
    """Compute the negative mean cosine over the masked tokens of the batch.

    A perfect prediction has loss -1, and an untrained head about 0. Every masked token has the same weight, so samples
    with more masked tokens weigh more, as in EVA. On GPUs, loss and gradient are one pass each over the features. A
    target that requires a gradient takes the plain form.

    Args:
        prediction: (B, N, D) with `bool_mask`. Without it, only the masked tokens, (..., D).
        target: Like `prediction`.
        bool_mask: (B, N), True = masked. It selects by weights, so shapes stay static. A batch without masked tokens
            has loss 0 and zero gradients.

    Returns:
        Scalar, fp32.

    Raises:
        ValueError: If shapes are inconsistent.

    Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.1.
    """
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"expected prediction and target of one shape, got {shapes}")
    if bool_mask is not None and bool_mask.shape != prediction.shape[:-1]:
        raise ValueError(f"expected bool_mask of shape {tuple(prediction.shape[:-1])}, got {tuple(bool_mask.shape)}")
    masked = None if bool_mask is None else bool_mask.bool()
    if target.requires_grad or not fused("masked_cosine_loss", prediction, target):
        return _mean(token_cosine(prediction, target), masked)
    rows = (prediction.reshape(-1, prediction.shape[-1]), target.reshape(-1, target.shape[-1]))
    loss: Tensor = _COSINE(*rows, None if masked is None else masked.flatten())[0]
    return loss


def resultant_length(features: Tensor, bool_mask: Tensor | None = None) -> Tensor:
    """Compute the length of the mean of the features' unit vectors: 1 where all features are alike.

    It is the mean cosine of the features with the best constant prediction. Its square is their mean mutual cosine.

    Args:
        features: (B, N, D) with `bool_mask`, otherwise (..., D).
        bool_mask: (B, N), True = counted. An empty mask gives 0.

    Returns:
        Scalar, fp32 (fp64 for fp64).

    Source: Mardia and Jupp 2000, Directional Statistics, section 9.2.
    """
    unit = F.normalize(at_least_fp32(features), dim=-1).flatten(0, -2)
    if bool_mask is None:
        weights = unit.new_ones(len(unit))
    else:
        weights = bool_mask.flatten().to(unit.dtype)
    length: Tensor = torch.linalg.vector_norm(weights @ unit) / weights.sum().clamp(min=1)
    return length


def _mean(cosine: Tensor, masked: Tensor | None) -> Tensor:
    """Average the cosines of the counted tokens, and negate the mean."""
    if masked is None:
        return -cosine.mean()
    return -torch.where(masked, cosine, 0.0).sum() / masked.sum().clamp(min=1)


def _run(prediction: Tensor, target: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the loss, and the factor that makes d cosine / d prediction the gradient of the loss."""
    if runs_triton(prediction, target):
        cosine = launchers().masked_cosine(prediction, target, masked, EPS)
    else:
        cosine = token_cosine(prediction, target)
    if masked is None:
        count = cosine.new_full((), len(cosine))
    else:
        count = masked.sum().clamp(min=1).to(cosine.dtype)
    return _mean(cosine, masked), -1 / count


def _run_backward(factor: Tensor, prediction: Tensor, target: Tensor, masked: Tensor | None) -> Tensor:
    """Compute factor * d cosine / d prediction, (R, D), in closed form.

    The factor is applied in fp32, before the gradient is rounded: 1 / count alone may be too small for fp16.
    """
    if runs_triton(prediction, target):
        gradient: Tensor = launchers().masked_cosine_backward(factor, prediction, target, masked, EPS)
        return gradient
    p = at_least_fp32(prediction)
    t = F.normalize(at_least_fp32(target), dim=-1, eps=EPS)
    length = torch.linalg.vector_norm(p, dim=-1, keepdim=True)
    inverse = 1 / length.clamp(min=EPS)
    along = (p * t).sum(dim=-1, keepdim=True) * inverse  # (R, 1)
    # The part of the target across the prediction. Below EPS torch divides by EPS, a constant, so nothing is taken
    # away.
    d_prediction: Tensor = (t - torch.where(length > EPS, along * inverse, 0.0) * p) * (inverse * factor)
    if masked is not None:
        d_prediction = d_prediction.masked_fill(~masked[:, None], 0.0)
    return d_prediction.to(prediction.dtype)


def _fake(prediction: Tensor, target: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.new_empty((), dtype=dtype), prediction.new_empty((), dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    factor, *inputs = ctx.saved_tensors
    d_prediction: Tensor = _COSINE_BACKWARD(grad * factor, *inputs)
    return d_prediction, None, None


_COSINE = Op("masked_cosine_loss(Tensor prediction, Tensor target, Tensor? masked) -> (Tensor, Tensor)", _run, _fake)
_COSINE_BACKWARD = Op(
    "masked_cosine_loss_backward(Tensor factor, Tensor prediction, Tensor target, Tensor? masked) -> Tensor",
    _run_backward,
    lambda factor, prediction, target, masked: prediction.new_empty(prediction.shape),
)
_COSINE.differentiate(_backward, _keep)
