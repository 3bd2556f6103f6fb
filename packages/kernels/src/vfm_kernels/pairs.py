"""All pairs of two sets, for contrastive losses on GPUs: statistics without N x N logits, losses of chunks in place.

Two forms, each with its use. `pair_log_sum_exp` makes tiles of logits that never leave the registers; one process's
InfoNCE needs a single one for both directions. `cross_entropy_rows_` and `sigmoid_rows_` turn a chunk of logits,
made by cuBLAS, into its gradient where it lies; `chunked` has their plain twins.
"""

# n queries, N keys, D width, c rows of a chunk

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vfm_kernels.dispatch import fused, runs_triton
from vfm_kernels.library import define, differentiate
from vfm_kernels.precision import at_least_fp32

CHUNK_LOGITS = 1 << 26  # held at once by the backward: 256 MB in fp32


def pair_log_sum_exp(
    queries: Tensor, keys: Tensor, scale: Tensor, *, columns: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of each row, and of each column, of `scale * queries @ keys.T`.

    CLIP's loss of one process is
    `(rows.mean() + columns.mean()) / 2 - scale * (image * text).sum(dim=1).mean()`.

    Args:
        queries: (n, D), any float dtype; products are summed in fp32.
        keys: (N, D), of the same dtype.
        scale: scalar tensor.
        columns: whether columns are wanted too, at the price of their exponentials.

    Returns:
        rows: (n,), fp32 (fp64 for fp64).
        columns: (N,) or None.

    Raises:
        ValueError: shapes that do not fit.

    Source: Cheng et al. 2024, Inf-CL (arXiv:2410.17243), for the tiles.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or not len(queries) or not len(keys):
        raise ValueError(
            f"queries are {tuple(queries.shape)}, keys {tuple(keys.shape)}; they must be (n, D) and (N, D)"
        )
    scale = scale.to(at_least_fp32(queries).dtype).reshape(())
    if fused(queries, keys):
        rows, of_columns, *_ = torch.ops.vfm_kernels.pair_log_sum_exp(queries, keys, scale, columns)
        return rows, of_columns if columns else None
    logits = _logits(queries, keys, scale)
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0) if columns else None


def _logits(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """(n, N) in fp32 whatever autocast says: in bf16 a logit of 100 has an error of 0.25."""
    with torch.autocast(queries.device.type, enabled=False):
        return scale * at_least_fp32(queries) @ at_least_fp32(keys).T


def _run(queries: Tensor, keys: Tensor, scale: Tensor, columns: bool) -> tuple[Tensor, Tensor]:
    if runs_triton(queries, keys):
        from vfm_kernels.launch import pairs

        return pairs.log_sum_exp(queries, keys, scale, columns)
    logits = _logits(queries, keys, scale)
    return logits.logsumexp(dim=1), logits.logsumexp(dim=0) if columns else logits.new_empty(0)


def _run_backward(
    d_rows: Tensor, d_columns: Tensor | None, queries: Tensor, keys: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and scale, in closed form: chunks of probabilities, and cuBLAS.

    Probabilities are normalised over these very logits. With the forward's sums, made of logits in another order of
    summation, they would add up to 1 +- 1e-5 at a scale of 100. Columns of several chunks take one more product for it.
    """
    q, k = at_least_fp32(queries), at_least_fp32(keys)
    d_q, d_k, d_scale = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(scale)
    chunk_size = max(1, CHUNK_LOGITS // len(k))
    chunks = list(zip(*(torch.split(t, chunk_size) for t in (q, d_rows, d_q)), strict=True))
    alone = len(chunks) == 1
    with torch.autocast(q.device.type, enabled=False):
        if d_columns is not None and not alone:
            of_columns = torch.stack([(part @ k.T * scale).logsumexp(dim=0) for part, *_ in chunks]).logsumexp(dim=0)
        for part, d_rows_of_part, d_part in chunks:
            cosine = part @ k.T  # (c, N)
            logits = cosine * scale
            d_logits = logits.softmax(dim=1) * d_rows_of_part[:, None]
            if d_columns is not None:
                d_logits += (logits.softmax(dim=0) if alone else (logits - of_columns).exp_()) * d_columns
            d_scale += (d_logits * cosine).sum()
            d_logits *= scale
            torch.mm(d_logits, k, out=d_part)
            d_k.addmm_(d_logits.T, part)
    return d_q.to(queries.dtype), d_k.to(keys.dtype), d_scale


def _fake(queries: Tensor, keys: Tensor, scale: Tensor, columns: bool) -> tuple[Tensor, Tensor]:
    return scale.new_empty(len(queries)), scale.new_empty(len(keys) if columns else 0)


def _fake_backward(d_rows: Tensor, d_columns: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.columns = inputs[3]


def _backward(ctx: Any, d_rows: Tensor, d_columns: Tensor) -> tuple[Tensor | None, ...]:
    of_columns = d_columns if ctx.columns else None
    return *torch.ops.vfm_kernels.pair_log_sum_exp_backward(d_rows, of_columns, *ctx.saved_tensors), None


def _run_rows(logits: Tensor, first_positive: int, name: str) -> Tensor:
    """Turns logits into their gradients in place, and returns the summed loss; `chunked` has the twin of that name."""
    if runs_triton(logits):
        from vfm_kernels.launch import pairs

        losses: Tensor = getattr(pairs, name)(logits, first_positive)
        return losses.sum()
    from vfm_kernels import chunked

    loss, grad = getattr(chunked, name)(logits, first_positive)
    logits.copy_(grad)
    total: Tensor = loss
    return total


_NAME = define(
    "pair_log_sum_exp(Tensor queries, Tensor keys, Tensor scale, bool columns) -> (Tensor, Tensor)", _run, _fake
)
define(
    "pair_log_sum_exp_backward(Tensor d_rows, Tensor? d_columns, Tensor queries, Tensor keys, Tensor scale)"
    " -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
differentiate(_NAME, _backward, _keep)
for _name in ("cross_entropy_rows", "sigmoid_rows"):
    define(
        f"{_name}_(Tensor(a!) logits, SymInt first_positive) -> Tensor",
        partial(_run_rows, name=_name),
        lambda logits, first_positive: logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32)),
    )
