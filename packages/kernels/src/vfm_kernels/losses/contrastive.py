"""Contrastive losses of image-text training, plain or in bounded memory, on one process or many.

`logit_scale` is the factor itself, already exponentiated, as open_clip's models return it. Features must be normalised.
Logits and sums are fp32 under any autocast: in bf16 a logit of 100 has an error of 0.25. Where torch multiplies fp32
matrices in TF32 (`torch.set_float32_matmul_precision("high")`, which vfm sets on CUDA devices), the factors are
rounded to 11 bits and the sums stay fp32. Logits up to 100 then have errors up to 0.005 (features of 512 channels).

With many processes, pass the group, or the results of `gather_with_grad` and the rank. Each process compares its own
samples with all others (open_clip's `local_loss`), and the mean over processes is the loss of the whole batch.
"""

# n samples of this process, N of all processes, D width

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vfm_kernels.dispatch.dispatch import fused
from vfm_kernels.dispatch.precision import at_least_fp32
from vfm_kernels.losses.all_pairs import all_pairs_loss
from vfm_kernels.losses.chunked import (
    chunked_pair_loss,
    cross_entropy_rows,
    distinct_cross_entropy_rows,
    same_group,
    sigmoid_rows,
    soft_cross_entropy_rows,
)
from vfm_kernels.losses.gather import gather_with_grad


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
    all_groups: Tensor | None = None,
    weights: Tensor | None = None,
    rank: int = 0,
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Compute CLIP's symmetric contrastive loss.

    Images classify their texts among all texts, and texts classify their images. The loss is ln N at chance.

    Args:
        image_features: (n, D), normalised.
        text_features: (n, D), normalised.
        logit_scale: Factor of the cosines, a scalar.
        all_image_features: (N, D), the features of all processes, rank by rank. Default: this process alone.
        all_text_features: (N, D), required together with the images.
        all_groups: (N,) integers of all processes, such as hashes of the texts. Samples of the same group are left out
            of each other's softmax, where a repeated text would be both the right and a wrong answer. Default: every
            other sample is a wrong answer.
        weights: (n,), factors of this process's samples in the mean. Their mean over all processes must be 1.
        rank: Rank of this process, whose samples start at rank * n.
        chunk_size: Rows of logits in memory at once. Loss and gradients equal the plain form, but memory holds
            chunk_size x N logits instead of n x N. No second derivative is available.
        group: Processes that share the batch, in place of `all_image_features`, `all_text_features` and `rank`. The
            features that are needed are gathered here. With a chunk size, these are the texts alone where that was
            measured to be faster. All processes must backpropagate the loss with the same factor.

    Returns:
        Scalar, fp32: the mean over this process's samples and both directions.

    Raises:
        ValueError: If shapes, rank or chunk size are inconsistent.

    Source: Radford et al. 2021, CLIP (arXiv:2103.00020), Figure 3.
    """
    if (all_image_features is None) != (all_text_features is None):
        raise ValueError("all_image_features and all_text_features must be given together")
    if group is not None and all_text_features is not None:
        raise ValueError("give either a group or the features of all processes")
    image = at_least_fp32(image_features)
    text = at_least_fp32(text_features)
    scale = _scalar(logit_scale, image_features)
    # Only without groups of samples do both directions share one matrix of logits.
    if chunk_size is not None and all_text_features is None and all_groups is None and weights is None:
        _first_positive(image, text, text, 0, chunk_size)
        if fused("info_nce_all_pairs", image, text):
            with torch.autocast(image.device.type, enabled=False):
                return all_pairs_loss(image, text, scale, chunk_size, group)
    if group is not None:
        all_image_features = gather_with_grad(image_features, group)
        all_text_features = gather_with_grad(text_features, group)
        rank = dist.get_rank(group)
    all_image = image if all_image_features is None else at_least_fp32(all_image_features)
    all_text = text if all_text_features is None else at_least_fp32(all_text_features)
    first = _first_positive(image, text, all_text, rank, chunk_size)
    if all_groups is not None and all_groups.shape != (len(all_text),):
        raise ValueError(f"expected all_groups of shape ({len(all_text)},), got {tuple(all_groups.shape)}")
    if weights is not None and (weights.shape != (len(image),) or chunk_size is not None):
        raise ValueError(f"expected weights of shape ({len(image)},) without a chunk_size, got {tuple(weights.shape)}")

    def direction(queries: Tensor, keys: Tensor) -> Tensor:
        if chunk_size is not None:
            rows = cross_entropy_rows if all_groups is None else distinct_cross_entropy_rows(all_groups)
            total = chunked_pair_loss(queries, keys, scale, torch.zeros_like(scale), rows, first, chunk_size)
            return total / len(queries)
        labels = torch.arange(first, first + len(queries), device=queries.device)
        logits = scale * queries @ keys.T
        if all_groups is not None:
            logits = logits.masked_fill(same_group(all_groups, first, len(logits)), -torch.inf)
        if weights is not None:
            return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()
        return F.cross_entropy(logits, labels)

    with torch.autocast(image.device.type, enabled=False):
        return (direction(image, all_text) + direction(text, all_image)) / 2


def similarity_distillation(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    logit_scale: Tensor | float,
    teacher_logit_scale: Tensor | float,
    *,
    all_student: tuple[Tensor, Tensor] | None = None,
    all_teacher: tuple[Tensor, Tensor] | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute the cross-entropy of a student's image-text similarities with a teacher's, in both directions.

    The teacher's features may have any width, and they get no gradient.

    Args:
        student: Image and text features, (n, D) each, normalised.
        teacher: Features of the same samples, (n, E) each, normalised.
        logit_scale: Factor of the student's cosines, a scalar.
        teacher_logit_scale: Factor of the teacher's cosines, a scalar.
        all_student: Features of all processes, (N, D) each. Default: this process alone.
        all_teacher: The teacher's features, (N, E) each, required together with the student's.
        chunk_size: Rows of logits in memory at once, as in `info_nce`.

    Returns:
        Scalar, fp32: the mean over this process's samples and both directions.

    Raises:
        ValueError: If shapes or chunk size are inconsistent.

    Source: Hinton et al. 2015 (arXiv:1503.02531), over the rows of CLIP's logits as in open_clip.
    """
    if (all_student is None) != (all_teacher is None):
        raise ValueError("all_student and all_teacher must be given together")
    ours = list(map(at_least_fp32, student))
    all_ours = list(map(at_least_fp32, all_student or student))
    theirs = [at_least_fp32(part.detach()) for part in teacher]
    all_theirs = [at_least_fp32(part.detach()) for part in all_teacher or teacher]
    scale = _scalar(logit_scale, ours[0])
    their_scale = _scalar(teacher_logit_scale, theirs[0]).detach()
    _first_positive(ours[0], ours[1], all_ours[1], 0, chunk_size)
    if list(map(len, (*theirs, *all_theirs))) != list(map(len, (*ours, *all_ours))):
        counts = f"{len(ours[0])} of {len(all_ours[0])}, {len(theirs[0])} of {len(all_theirs[0])}"
        raise ValueError(f"expected the same number of samples from student and teacher, got {counts}")

    def direction(queries: Tensor, keys: Tensor, their_queries: Tensor, their_keys: Tensor) -> Tensor:
        def distributions(rows: slice) -> Tensor:
            return (their_scale * their_queries[rows] @ their_keys.T).softmax(dim=1)

        if chunk_size is not None:
            # The chunked loss takes a bias too. A softmax is not changed by one.
            zero = torch.zeros_like(scale)
            rows = soft_cross_entropy_rows(distributions)
            return chunked_pair_loss(queries, keys, scale, zero, rows, 0, chunk_size) / len(queries)
        return F.cross_entropy(scale * queries @ keys.T, distributions(slice(None)))

    with torch.autocast(ours[0].device.type, enabled=False):
        images_to_texts = direction(ours[0], all_ours[1], theirs[0], all_theirs[1])
        return (images_to_texts + direction(ours[1], all_ours[0], theirs[1], all_theirs[0])) / 2


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    all_text_features: Tensor | None = None,
    rank: int = 0,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute SigLIP's sigmoid loss.

    Every image-text pair is a binary classification, without normalisation over the batch.

    Args:
        image_features: (n, D), normalised.
        text_features: (n, D), normalised.
        logit_scale: Factor of the cosines, a scalar.
        logit_bias: Added to every logit. The paper starts it at -10, as nearly all pairs are negatives.
        all_text_features: (N, D), the features of all processes, rank by rank. Default: this process alone.
        rank: Rank of this process, whose samples start at rank * n.
        chunk_size: Rows of logits in memory at once, as in `info_nce`.

    Returns:
        Scalar, fp32: summed over the N texts, averaged over this process's images.

    Raises:
        ValueError: If shapes, rank or chunk size are inconsistent.

    Source: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training (arXiv:2303.15343), Algorithm 1.
    """
    image = at_least_fp32(image_features)
    text = at_least_fp32(text_features)
    scale = _scalar(logit_scale, image)
    bias = _scalar(logit_bias, image)
    all_text = text if all_text_features is None else at_least_fp32(all_text_features)
    first = _first_positive(image, text, all_text, rank, chunk_size)
    with torch.autocast(image.device.type, enabled=False):
        if chunk_size is not None:
            return chunked_pair_loss(image, all_text, scale, bias, sigmoid_rows, first, chunk_size) / len(image)
        logits = scale * image @ all_text.T + bias
        signs = -torch.ones_like(logits)
        signs.diagonal(first).fill_(1.0)
        return -F.logsigmoid(signs * logits).sum() / len(image)


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(value, device=like.device).to(at_least_fp32(like).dtype).reshape(())


def _first_positive(image: Tensor, text: Tensor, all_text: Tensor, rank: int, chunk_size: int | None) -> int:
    """Check shapes, and compute the index of this process's first sample among all samples."""
    if image.shape != text.shape or image.ndim != 2 or len(image) == 0:
        shapes = f"{tuple(image.shape)} and {tuple(text.shape)}"
        raise ValueError(f"expected image and text features of one shape (n, D), got {shapes}")
    num_local = len(image)
    num_all = len(all_text)
    if num_all % num_local or not 0 <= rank < num_all // num_local:
        raise ValueError(f"rank {rank} with {num_local} samples does not fit {num_all} gathered samples")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return rank * num_local
