"""Moving tokens: mask tokens in, dropped tokens out and back; all with static shapes and without host sync."""

# B batch, N tokens, K kept tokens, D width

import torch
from torch import Tensor


def mask_tokens(patch_tokens: Tensor, mask_token: Tensor, bool_mask: Tensor) -> Tensor:
    """Put the learned mask token where patches are hidden from the student (EVA, BEiT, SimMIM).

    Args:
        patch_tokens: (B, N, D), without CLS and before position embeddings.
        mask_token: D values in any shape, such as (1, 1, D); cast to the tokens' dtype.
        bool_mask: (B, N), True = masked.

    Returns:
        (B, N, D).

    Raises:
        ValueError: shapes that do not fit.
    """
    if bool_mask.shape != patch_tokens.shape[:2]:
        raise ValueError(f"bool_mask is {tuple(bool_mask.shape)}; patch_tokens {tuple(patch_tokens.shape)} need (B, N)")
    token = mask_token.reshape(1, 1, patch_tokens.shape[-1]).to(patch_tokens.dtype)
    return torch.where(bool_mask.bool().unsqueeze(-1), token, patch_tokens)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens of each sample that `index` names, in its order: visible tokens of MAE, kept tokens of FLIP.

    Args:
        tokens: (B, N, D).
        index: (B, K) integers in [0, N).

    Returns:
        (B, K, D).
    """
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def scatter_tokens(tokens: Tensor, index: Tensor, num_tokens: int, fill: Tensor | None = None) -> Tensor:
    """Put tokens back where `gather_tokens` took them from, `fill` (MAE's mask token) everywhere else.

    Args:
        tokens: (B, K, D).
        index: (B, K) integers in [0, num_tokens), none twice in a sample.
        num_tokens: N of the result.
        fill: broadcasts to (B, N, D), cast to the tokens' dtype; zeros by default.

    Returns:
        (B, N, D).
    """
    shape = (tokens.shape[0], num_tokens, tokens.shape[-1])
    base = tokens.new_zeros(shape) if fill is None else fill.to(tokens.dtype).expand(shape)
    return base.scatter(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), tokens)


def patch_dropout_index(
    batch: int,
    num_tokens: int,
    keep: int,
    generator: torch.Generator | None = None,
    *,
    num_prefix_tokens: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which tokens survive patch dropout (FLIP, EVA-CLIP): a uniform choice of exactly `keep` patches per sample.

    The choice is in ascending order, so position embeddings and RoPE tables are read in runs.

    Args:
        batch: B.
        num_tokens: tokens of a sample, prefix tokens (CLS, registers) and patches.
        keep: patches kept, prefix tokens not counted. On GPUs, a total just below a multiple of 64 (127 + CLS of 256)
            fills attention tiles; one above wastes them.
        generator: on the device asked for; torch's global one by default.
        num_prefix_tokens: leading tokens that are always kept.
        device: where the index lives; the generator's own by default.

    Returns:
        (B, num_prefix_tokens + keep) int64, for `gather_tokens`.

    Raises:
        ValueError: `keep` is not between 1 and the number of patches.

    Source: Li et al. 2022, Scaling Language-Image Pre-training via Masking (arXiv:2212.00794).
    """
    num_patches = num_tokens - num_prefix_tokens
    if not 1 <= keep <= num_patches:
        raise ValueError(f"keep is {keep}; {num_patches} patches allow 1 to {num_patches}")
    if device is None and generator is not None:
        device = generator.device
    keys = torch.rand(batch, num_patches, generator=generator, device=device)
    kept = keys.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values + num_prefix_tokens
    prefix = torch.arange(num_prefix_tokens, device=kept.device).expand(batch, -1)
    return torch.cat([prefix, kept], dim=1)


def masked_index(bool_mask: Tensor, num_masked: int) -> Tensor:
    """Positions of the masked tokens in ascending order, for masks of equal count (`block_mask_exact`, `random_mask`).

    With `gather_tokens` it is `tokens[bool_mask]` of a known shape, which spares a GPU the host sync of `nonzero`.
    Of a mask with more than `num_masked` the first are taken; one with fewer is filled up with unmasked positions.

    Args:
        bool_mask: (B, N), True = masked.
        num_masked: K.

    Returns:
        (B, K) int64.
    """
    return bool_mask.bool().sort(dim=1, descending=True, stable=True).indices[:, :num_masked]
