"""Select tokens for masked and dropped patches, with static shapes and without synchronising with the host."""

# B batch, N tokens, K kept tokens, D width

from typing import Any

import torch
from torch import Tensor

from vfm_kernels.dispatch.dispatch import fused, launchers, runs_triton
from vfm_kernels.dispatch.library import Op


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select tokens of each sample by index.

    MAE gathers its visible tokens this way, and FLIP the tokens that it keeps.

    Args:
        tokens: (B, N, D).
        index: (B, K) integers in [0, N). The result has their order.

    Returns:
        (B, K, D).
    """
    if not fused("gather_tokens", tokens):
        return tokens.gather(1, _rows(index, tokens))
    gathered: Tensor = _GATHER(tokens, index)
    return gathered


def scatter_tokens(tokens: Tensor, index: Tensor, num_tokens: int, fill: Tensor | None = None) -> Tensor:
    """Put tokens back where `gather_tokens` took them from, and `fill` (MAE's mask token) everywhere else.

    Args:
        tokens: (B, K, D).
        index: (B, K) integers in [0, num_tokens), distinct within a sample.
        num_tokens: N of the result.
        fill: Broadcasts to (B, N, D), cast to the tokens' dtype. Default: zeros.

    Returns:
        (B, N, D).
    """
    shape = (tokens.shape[0], num_tokens, tokens.shape[-1])
    fill = None if fill is None else fill.to(tokens.dtype).expand(shape)
    if not fused("scatter_tokens", tokens):
        base = tokens.new_zeros(shape) if fill is None else fill
        return base.scatter(1, _rows(index, tokens), tokens)
    scattered: Tensor = _SCATTER(tokens, index, num_tokens, fill)
    return scattered


def patch_dropout_index(
    batch: int,
    num_tokens: int,
    keep: int,
    generator: torch.Generator | None = None,
    *,
    num_prefix_tokens: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the tokens that patch dropout keeps (FLIP, EVA-CLIP): a uniform choice of exactly `keep` patches per sample.

    The index is in ascending order, so position embeddings and RoPE tables are read in runs.

    Args:
        batch: B.
        num_tokens: Tokens of a sample, prefix tokens (CLS, registers) and patches.
        keep: Patches to keep, without prefix tokens. On GPUs, a total just below a multiple of 64 (127 + CLS of 256)
            fills attention tiles, while one just above wastes them.
        generator: Generator on `device`. Default: torch's global one.
        num_prefix_tokens: Leading tokens that are always kept.
        device: Device of the index. Default: the generator's.

    Returns:
        (B, num_prefix_tokens + keep) int64, for `gather_tokens`.

    Raises:
        ValueError: If `keep` is not between 1 and the number of patches.

    Source: Li et al. 2022, Scaling Language-Image Pre-training via Masking (arXiv:2212.00794).
    """
    num_patches = num_tokens - num_prefix_tokens
    if not 1 <= keep <= num_patches:
        raise ValueError(f"keep must be between 1 and {num_patches}, got {keep}")
    if device is None and generator is not None:
        device = generator.device
    keys = torch.rand(batch, num_patches, generator=generator, device=device)
    # The largest of independent uniforms are a uniform choice of exact size. Sorted, so that tokens stay in reading
    # order.
    kept_patches = keys.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values + num_prefix_tokens
    prefix = torch.arange(num_prefix_tokens, device=kept_patches.device).expand(batch, -1)
    return torch.cat([prefix, kept_patches], dim=1)


def masked_index(bool_mask: Tensor, num_masked: int) -> Tensor:
    """Find the positions of the masked tokens in ascending order, for masks of equal count (`block_mask_exact`).

    `gather_tokens` with this index is `tokens[bool_mask]` with a static shape, without the host synchronisation of
    `nonzero`. A mask with more than `num_masked` tokens is cut to the first ones. A mask with fewer is filled up with
    unmasked positions.

    Args:
        bool_mask: (B, N), True = masked.
        num_masked: K.

    Returns:
        (B, K) int64.
    """
    return bool_mask.bool().sort(dim=1, descending=True, stable=True).indices[:, :num_masked]


def _rows(index: Tensor, tokens: Tensor) -> Tensor:
    """Expand an index to every channel, (B, K, D)."""
    return index.long().unsqueeze(-1).expand(-1, -1, tokens.shape[-1])


def _run_gather(tokens: Tensor, index: Tensor) -> Tensor:
    if runs_triton(tokens):
        gathered: Tensor = launchers().gather_tokens(tokens, index)
        return gathered
    return tokens.gather(1, _rows(index, tokens))


def _run_scatter(tokens: Tensor, index: Tensor, num_tokens: int, fill: Tensor | None) -> Tensor:
    """Scatter tokens. A position that the index holds twice gets the sum, as the gradient of gathering needs it."""
    if runs_triton(tokens):
        scattered: Tensor = launchers().scatter_tokens(tokens, index, num_tokens, fill)
        return scattered
    rows = _rows(index, tokens)
    if fill is None:
        base = tokens.new_zeros(len(tokens), num_tokens, tokens.shape[-1])
    else:
        base = fill.scatter(1, rows, 0.0)
    return base.scatter_add(1, rows, tokens)


def _keep_gather(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    tokens, index = inputs
    ctx.save_for_backward(index)
    ctx.num_tokens = tokens.shape[1]


def _backward_gather(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return _SCATTER(grad, index, ctx.num_tokens, None), None


def _keep_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, _, fill = inputs
    ctx.save_for_backward(index)
    ctx.has_fill = fill is not None


def _backward_scatter(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (index,) = ctx.saved_tensors
    d_fill = None
    if ctx.has_fill:
        taken = torch.zeros(grad.shape[:2], dtype=torch.bool, device=grad.device).scatter(1, index.long(), True)
        # Where a token was put, the fill is not visible in the result.
        d_fill = grad.masked_fill(taken.unsqueeze(-1), 0.0)
    return _GATHER(grad, index), None, None, d_fill


_GATHER = Op(
    "gather_tokens(Tensor tokens, Tensor index) -> Tensor",
    _run_gather,
    lambda tokens, index: tokens.new_empty(*index.shape, tokens.shape[-1]),
)
_SCATTER = Op(
    "scatter_tokens(Tensor tokens, Tensor index, SymInt num_tokens, Tensor? fill) -> Tensor",
    _run_scatter,
    lambda tokens, index, num_tokens, fill: tokens.new_empty(len(tokens), num_tokens, tokens.shape[-1]),
)
_GATHER.differentiate(_backward_gather, _keep_gather)
_SCATTER.differentiate(_backward_scatter, _keep_scatter)
