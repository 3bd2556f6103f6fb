"""EVA's objective: negative cosine between predicted and teacher features on masked patches, in fp32."""

# B batch, N tokens, D width

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm_kernels.precision import at_least_fp32


def token_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Cosine of each predicted token with its target, for the loss and for the per-patch maps of a report.

    Args:
        prediction: (..., D), any float dtype.
        target: (..., D).

    Returns:
        (...), fp32 (fp64 if either is), whatever autocast says: bf16 would quantise a cosine of 0.75 to steps of 0.004.
    """
    return F.cosine_similarity(at_least_fp32(prediction), at_least_fp32(target), dim=-1)


def masked_cosine_loss(prediction: Tensor, target: Tensor, bool_mask: Tensor | None = None) -> Tensor:
    """Negative mean cosine over the masked tokens of the batch; -1 is perfect, 0 what an untrained head gives.

    Every masked token weighs the same, so samples with more masked tokens weigh more, as in EVA.

    Args:
        prediction: (B, N, D) with `bool_mask`; or the masked tokens alone, (..., D), without.
        target: like `prediction`.
        bool_mask: (B, N), True = masked; a selection by weights, so shapes stay static. A batch that masks nothing
            has loss 0 and zero gradients.

    Returns:
        Scalar, fp32.

    Raises:
        ValueError: shapes that do not fit.

    Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.1.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}; they must be equal")
    if bool_mask is not None and bool_mask.shape != prediction.shape[:-1]:
        raise ValueError(
            f"bool_mask is {tuple(bool_mask.shape)}; features {tuple(prediction.shape)} need all but the last"
        )
    cosine = token_cosine(prediction, target)
    if bool_mask is None:
        return -cosine.mean()
    masked = bool_mask.bool()
    return -torch.where(masked, cosine, 0.0).sum() / masked.sum().clamp(min=1)


def resultant_length(features: Tensor, bool_mask: Tensor | None = None) -> Tensor:
    """How far features point the same way: the length of their unit vectors' mean, 1 where all are alike.

    It is the mean cosine that the best constant guess has with them; its square is their mean mutual cosine.

    Args:
        features: (B, N, D) with `bool_mask`; or (..., D) without.
        bool_mask: (B, N), True = counted; a mask that counts nothing gives 0.

    Returns:
        Scalar, fp32 (fp64 for fp64).

    Source: Mardia and Jupp 2000, Directional Statistics, section 9.2.
    """
    unit = F.normalize(at_least_fp32(features), dim=-1).flatten(0, -2)
    weights = unit.new_ones(len(unit)) if bool_mask is None else bool_mask.flatten().to(unit.dtype)
    length: Tensor = torch.linalg.vector_norm(weights @ unit) / weights.sum().clamp(min=1)
    return length
