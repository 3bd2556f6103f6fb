"""Backends of attention, each with its limits, and the choice among them.

Where attentions of about this size were measured on this card (`choosing`), `auto` takes the fastest backend.
Elsewhere it takes the first library in the order below, which is an estimate from published timings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vfm_kernels.dispatch.choosing import TILE
from vfm_kernels.dispatch.dispatch import SETTINGS, Kernels, constant_when_compiled, needs_gradient, specialized
from vfm_kernels.dispatch.measured import choice_on
from vfm_kernels.multihead import libraries
from vfm_kernels.multihead.problem import Problem, problem_on
from vfm_kernels.pattern import Pattern

HALF = (torch.float16, torch.bfloat16)
SHORT_TOKENS = 272  # 256 and a tail of 16: the scores of more keys do not fit into registers
SHORT_WIDTH = 88  # wider heads spill registers in the kernel for few tokens
WIDEST = 128  # channels of a head; wider ones spill registers
CUDNN_WITHOUT_BUG = 91501  # older versions read beyond the end where 128 does not divide N (pytorch #169849)


@dataclass(frozen=True)
class Backend:
    """An implementation of attention.

    Attributes:
        name: Value of `attention`'s `backend`.
        reasons: Yields the reasons why the backend cannot take a problem. It yields nothing if it can.
        run: Maps q, k, v (B, N, H, D) and the pattern to (B, N, H, D). A boolean mask follows if there is one.
        is_kernel: Whether it is one of our kernels. `auto` takes such a backend only where it was measured to be
            fastest.
    """

    name: str
    reasons: Callable[[Problem], Iterator[str]]
    run: Callable[..., Tensor]
    is_kernel: bool = False

    def not_supported_reasons(self, problem: Problem) -> list[str]:
        """List the reasons why it cannot take the problem; empty if it can."""
        return list(self.reasons(problem))


def _triton(problem: Problem) -> Iterator[str]:
    yield from problem.no_kernels
    yield from _no_mask(problem)
    if problem.width % 8 or problem.width > WIDEST:
        yield f"heads of {problem.width}: the width must be a multiple of 8, at most {WIDEST}"
    if problem.device == "cuda" and problem.dtype not in HALF:
        yield f"{problem.dtype}: the tiles are for fp16 and bf16"


def _triton_short(problem: Problem) -> Iterator[str]:
    yield from _triton(problem)
    if problem.device == "cuda" and problem.capability[0] != 9:
        yield "only Hopper's matrix products (sm_90) read the keys from shared memory"
    if problem.num_tokens > SHORT_TOKENS:
        yield f"{problem.num_tokens} tokens: scores of more than {SHORT_TOKENS} keys do not fit into registers"
    if SHORT_WIDTH < problem.width <= WIDEST:
        yield f"heads of {problem.width}: registers spill above {SHORT_WIDTH}"
    if problem.causal or problem.varlen:
        yield "causal masks and variable length need triton_stream"


def _fa4(problem: Problem) -> Iterator[str]:
    yield from libraries.import_reasons("flash_attn.cute")
    yield from _half_on_gpu(problem)
    if problem.device == "cuda" and problem.capability < (9, 0):
        yield f"compute capability {problem.capability} is below 9.0"


def _fa3(problem: Problem) -> Iterator[str]:
    yield from libraries.import_reasons("flash_attn_interface")
    yield from _half_on_gpu(problem)
    if problem.device == "cuda" and problem.capability[0] != 9:
        yield f"compute capability {problem.capability} is not 9.0"


def _half_on_gpu(problem: Problem) -> Iterator[str]:
    if problem.device != "cuda":
        yield f"device is {problem.device}; it needs a CUDA device"
    elif problem.capability < (8, 0):
        yield f"compute capability {problem.capability} is below 8.0"
    if problem.dtype not in HALF:
        yield f"{problem.dtype}: it supports fp16 and bf16"
    if problem.width % 8:
        yield f"heads of {problem.width}: the width must be a multiple of 8"
    yield from _no_mask(problem)


def _no_mask(problem: Problem) -> Iterator[str]:
    if problem.masked:
        yield "boolean masks are given to torch's own sdpa_efficient and sdpa only"


def _sdpa_flash(problem: Problem) -> Iterator[str]:
    yield from _half_on_gpu(problem)
    if problem.varlen:
        yield "it supports no mask, and so no variable length"


def _sdpa_cudnn(problem: Problem) -> Iterator[str]:
    yield from _sdpa_flash(problem)
    if problem.width > WIDEST:
        yield f"heads of {problem.width}: at most {WIDEST}"
    version = libraries.cudnn_version()
    if version is None:
        yield "torch has no cuDNN"
    elif version < CUDNN_WITHOUT_BUG and problem.num_tokens % 128:
        major = version // 10000
        minor = version // 100 % 100
        patch = version % 100
        yield f"cuDNN {major}.{minor}.{patch} reads beyond the end of {problem.num_tokens} tokens; 9.15.1 does not"


def _sdpa_efficient(problem: Problem) -> Iterator[str]:
    if problem.device != "cuda":
        yield f"device is {problem.device}; it needs a CUDA device"
    if problem.dtype == torch.float64:
        yield f"{problem.dtype} is not supported"


def _sdpa(problem: Problem) -> Iterator[str]:
    if problem.device == "cuda":
        yield "on a CUDA device torch might take a kernel with a known bug, so its three kernels are called by name"


def _xformers(problem: Problem) -> Iterator[str]:
    yield from libraries.import_reasons("xformers.ops")
    yield from _half_on_gpu(problem)
    if problem.varlen:
        yield "it needs the lengths on the host and would wait for the GPU"


BACKENDS = (
    Backend("triton_short", _triton_short, libraries.run_triton_short, is_kernel=True),
    Backend("triton_stream", _triton, libraries.run_triton_stream, is_kernel=True),
    Backend("fa4", _fa4, libraries.run_fa4),
    Backend("fa3", _fa3, libraries.run_fa3),
    Backend("sdpa_cudnn", _sdpa_cudnn, libraries.run_sdpa_cudnn),
    Backend("sdpa_flash", _sdpa_flash, libraries.run_sdpa_flash),
    Backend("sdpa_efficient", _sdpa_efficient, libraries.run_sdpa_efficient),
    Backend("sdpa", _sdpa, libraries.run_sdpa),
    Backend("xformers", _xformers, libraries.run_xformers),
    Backend("eager", lambda problem: iter(()), libraries.run_eager),
)
BY_NAME = {backend.name: backend for backend in BACKENDS}


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, name: str, visible: Tensor | None = None) -> Tensor:
    """Compute `attention` by the backend that `choose` has selected.

    Args:
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        v: Values, (B, N, H, D).
        pattern: Mask, scale and angles.
        name: Name of the backend.
        visible: Booleans that are broadcast to (B, H, N, N), True where a query sees a key.
    """
    run = BY_NAME[name].run
    return run(q, k, v, pattern) if visible is None else run(q, k, v, pattern, visible)


def choose(heads: Tensor, shape: Sequence[int], pattern: Pattern, name: str | None, *, masked: bool = False) -> str:
    """Choose the backend for an attention by its name if it is forced, otherwise by the choice of kernels.

    Args:
        heads: Queries, or a tensor of their dtype on their device.
        shape: (B, N, H, D) of the queries.
        pattern: Mask, scale and angles of the attention.
        name: Name of a forced backend.
        masked: Whether there is a boolean mask.

    Returns:
        The backend's name.

    Raises:
        ValueError: If the backend is unknown or cannot run. The message gives the reasons.
    """
    choice = SETTINGS.choice
    if name is None and heads.device.type != "cuda" and choice != "triton":
        return "sdpa"  # torch's own path, without the cost of the list
    longest = pattern.max_seqlen
    if pattern.cu_seqlens is not None:  # rows whose longest sequences differ by less than a tile then share a graph
        longest = -(-longest // TILE) * TILE
    sizes = (*map(specialized, shape), specialized(longest))
    kind = (pattern.causal, pattern.cu_seqlens is not None, pattern.sin is not None, masked, needs_gradient(heads))
    chosen: str = _chosen(heads.device, heads.dtype, sizes, kind, name, choice)
    return chosen


# A constant for `torch.compile`, which specialises on shapes here and cannot trace the reasons.
@constant_when_compiled
def _chosen(*facts: Any) -> str:
    return _cached_choice(*facts)


@cache
def _cached_choice(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    kind: tuple[bool, ...],
    name: str | None,
    choice: Kernels,
) -> str:
    problem = problem_on(device, dtype, shape, *kind)
    if name is not None:
        if name not in BY_NAME:
            raise ValueError(f"{name!r} is not a valid backend; choose from {', '.join(BY_NAME)}")
        reasons = BY_NAME[name].not_supported_reasons(problem)
        if reasons:
            raise ValueError(f"backend {name} cannot run here: {'; '.join(reasons)}")
        return name
    chosen = first_choice(problem, choice)
    if chosen is None:
        kernels = [backend for backend in BACKENDS if backend.is_kernel]
        reasons = [f"{kernel.name}: {', '.join(kernel.not_supported_reasons(problem))}" for kernel in kernels]
        raise ValueError(f"kernels 'triton' cannot run here: {'; '.join(reasons)}")
    return chosen


def first_choice(problem: Problem, choice: Kernels) -> str | None:
    """Choose the backend for a problem under a choice of kernels.

    Returns:
        Name of the backend, or None if kernels are forced and cannot run.
    """
    if choice == "auto" and problem.device == "cuda" and not problem.masked:
        measured = choice_on(problem.card, problem.size)
        if measured is not None and not BY_NAME[measured.name].not_supported_reasons(problem):
            return measured.name
    for backend in BACKENDS:
        if backend.is_kernel == (choice == "triton") and not backend.not_supported_reasons(problem):
            return backend.name
    return None
