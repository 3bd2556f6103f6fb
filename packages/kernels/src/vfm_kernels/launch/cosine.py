"""Launches the masked cosine and the scaling of its gradient."""

import torch
from torch import Tensor

from vfm_kernels.launch import block_of, launch, settings, with_adjacent_columns
from vfm_kernels.triton.cosine import masked_cosine_kernel, scale_kernel


def cosine_and_gradient(
    prediction: Tensor, target: Tensor, bool_mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The op `masked_cosine`: features (R, D), mask (R,)."""
    prediction, target = with_adjacent_columns(prediction), with_adjacent_columns(target)
    num_rows, width = prediction.shape
    cosines = torch.empty(num_rows, device=prediction.device)
    d_prediction = prediction.new_empty(num_rows, width)
    launch(
        masked_cosine_kernel,
        (num_rows,),
        prediction.device,
        prediction,
        target,
        None if bool_mask is None else bool_mask.contiguous().view(torch.uint8),
        cosines,
        d_prediction,
        width,
        prediction.stride(0),
        target.stride(0),
        eps,
        HAS_MASK=bool_mask is not None,
        BLOCK=block_of(width),
        **settings("masked_cosine", width, prediction.device),
    )
    return cosines, d_prediction


def scale(source: Tensor, factor: Tensor) -> Tensor:
    """The op `scale`: a contiguous tensor, and a scalar in fp32."""
    target = torch.empty_like(source)
    chosen = settings("scale", source.shape[-1], source.device)
    grid = (-(-source.numel() // chosen["BLOCK"]),)
    launch(scale_kernel, grid, source.device, source, factor, target, source.numel(), **chosen)
    return target
