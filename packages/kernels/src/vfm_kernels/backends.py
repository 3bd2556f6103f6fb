"""Who can compute an attention: a list in the order of preference, and for each why it cannot, or why it stands back.

The order and the limits of length are estimates for Hopper; no timing of ours stands behind them yet.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vfm_kernels import libraries
from vfm_kernels.dispatch import Kernels, choice_in_force
from vfm_kernels.pattern import Pattern
from vfm_kernels.problem import Problem, problem_of

HALF = (torch.float16, torch.bfloat16)
SHORT_TOKENS = 272  # 256 and a tail of 16: scores of more keys do not fit in registers
SHORT_WIDTH = 88
WIDEST = 128
CUDNN_WITHOUT_BUG = 91501  # older ones read beyond the end where 128 does not divide N (pytorch #169849)


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        name: as `attention` takes it.
        reasons: why it cannot take a problem; none if it can.
        run: q, k, v (B, N, H, D) and the pattern to (B, N, H, D).
        stands_back: why it should not be chosen though it can; None if it should.
    """

    name: str
    reasons: Callable[[Problem], Iterator[str]]
    run: Callable[[Tensor, Tensor, Tensor, Pattern], Tensor]
    stands_back: Callable[[Problem], str | None] = lambda problem: None

    def not_supported_reasons(self, problem: Problem) -> list[str]:
        """Why it cannot take the problem; empty if it can."""
        return list(self.reasons(problem))


def _triton(problem: Problem) -> Iterator[str]:
    yield from problem.no_kernels
    if problem.width % 8 or problem.width > WIDEST:
        yield f"heads of {problem.width}: they must be a multiple of 8, up to {WIDEST}"
    if problem.device == "cuda" and problem.dtype not in HALF:
        yield f"{problem.dtype}: tiles are for fp16 and bf16"


def _triton_short(problem: Problem) -> Iterator[str]:
    yield from _triton(problem)
    if problem.device == "cuda" and problem.capability[0] != 9:
        yield "keys of a head stay in shared memory as only Hopper's products (sm_90) read them"
    if problem.num_tokens > SHORT_TOKENS:
        yield f"{problem.num_tokens} tokens: scores of more than {SHORT_TOKENS} keys do not fit in registers"
    if SHORT_WIDTH < problem.width <= WIDEST:
        yield f"heads of {problem.width}: above {SHORT_WIDTH} registers spill"
    if problem.causal or problem.varlen:
        yield "causal and variable length are triton_stream's"


def _stream_stands_back(problem: Problem) -> str | None:
    if problem.causal and not problem.varlen and problem.longest <= 128:
        return "short causal texts cost next to nothing in torch"
    if problem.longest > 384 and not (list(_fa4(problem)) and list(_fa3(problem))):
        return "above 384 tokens FlashAttention 3 and 4 are expected to be faster"
    if problem.longest > 640 and not problem.varlen:
        return "above 640 tokens cuDNN and FlashAttention are expected to be faster"
    return None


def _fa4(problem: Problem) -> Iterator[str]:
    if not libraries.installed("flash_attn.cute"):
        yield "flash_attn.cute is not installed"
    yield from _half_on_gpu(problem)
    if problem.device == "cuda" and problem.capability < (9, 0):
        yield f"compute capability {problem.capability} is below 9.0"


def _fa3(problem: Problem) -> Iterator[str]:
    if not libraries.installed("flash_attn_interface"):
        yield "flash_attn_interface is not installed"
    yield from _half_on_gpu(problem)
    if problem.device == "cuda" and problem.capability[0] != 9:
        yield f"compute capability {problem.capability} is not 9.0"


def _half_on_gpu(problem: Problem) -> Iterator[str]:
    if problem.device != "cuda":
        yield f"device is {problem.device}; it needs a CUDA device"
    elif problem.capability < (8, 0):
        yield f"compute capability {problem.capability} is below 8.0"
    if problem.dtype not in HALF:
        yield f"{problem.dtype}: it takes fp16 and bf16"
    if problem.width % 8:
        yield f"heads of {problem.width}: they must be a multiple of 8"


def _sdpa_flash(problem: Problem) -> Iterator[str]:
    yield from _half_on_gpu(problem)
    if problem.varlen:
        yield "it takes no mask, so no variable length"


def _sdpa_cudnn(problem: Problem) -> Iterator[str]:
    yield from _sdpa_flash(problem)
    if problem.width > WIDEST:
        yield f"heads of {problem.width}: at most {WIDEST}"
    version = libraries.cudnn_version()
    if version is None:
        yield "torch has no cuDNN"
    elif version < CUDNN_WITHOUT_BUG and problem.num_tokens % 128:
        major, minor, patch = version // 10000, version // 100 % 100, version % 100
        yield f"cuDNN {major}.{minor}.{patch} reads beyond the end of {problem.num_tokens} tokens; 9.15.1 does not"


def _sdpa_efficient(problem: Problem) -> Iterator[str]:
    if problem.device != "cuda":
        yield f"device is {problem.device}; it needs a CUDA device"
    if problem.dtype == torch.float64:
        yield f"{problem.dtype} is not supported"


def _sdpa(problem: Problem) -> Iterator[str]:
    if problem.device == "cuda":
        yield "on a CUDA device its three kernels are asked by name: torch might take one with a known bug"


def _xformers(problem: Problem) -> Iterator[str]:
    if not libraries.installed("xformers"):
        yield "xformers is not installed"
    yield from _half_on_gpu(problem)
    if problem.varlen:
        yield "it wants the lengths on the host, so it would wait for the GPU"


BACKENDS = (
    Backend("triton_short", _triton_short, libraries.run_triton_short),
    Backend("triton_stream", _triton, libraries.run_triton_stream, _stream_stands_back),
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


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, name: str | None) -> Tensor:
    """`attention` by the named backend, or by the one that `choose` takes.

    Raises:
        ValueError: it cannot run; says why.
    """
    return BY_NAME[choose(q, pattern, name)].run(q, k, v, pattern)


def choose(q: Tensor, pattern: Pattern, name: str | None) -> str:
    """The name of the backend that takes an attention, by `name` if one is forced, else by `use_kernels`.

    Raises:
        ValueError: no such backend, or it cannot run; says why.
    """
    choice = choice_in_force()
    if name is None and q.device.type != "cuda" and choice != "triton":
        return "sdpa"  # torch's own path, reached without a look at the list
    batch, num_tokens, num_heads, width = map(int, q.shape)
    shape = (batch, num_tokens, num_heads, width, int(pattern.max_seqlen))
    chosen: str = _chosen(q.device, q.dtype, shape, pattern.causal, pattern.cu_seqlens is not None, name, choice)
    return chosen


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen(*facts: Any) -> str:
    return _remembered(*facts)


@cache
def _remembered(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    causal: bool,
    varlen: bool,
    name: str | None,
    choice: Kernels,
) -> str:
    problem = problem_of(device, dtype, shape, causal, varlen)
    if name is not None:
        if name not in BY_NAME:
            raise ValueError(f"backend is {name!r}; it must be one of {', '.join(BY_NAME)}")
        if reasons := BY_NAME[name].not_supported_reasons(problem):
            raise ValueError(f"backend {name} cannot run here: {'; '.join(reasons)}")
        return name
    taken = first_choice(problem, choice)
    if taken is None:
        kernels = [backend for backend in BACKENDS if backend.name.startswith("triton")]
        told = "; ".join(f"{each.name}: {', '.join(each.not_supported_reasons(problem))}" for each in kernels)
        raise ValueError(f"kernels is 'triton', which cannot run here: {told}")
    return taken


def first_choice(problem: Problem, choice: Kernels) -> str | None:
    """The first backend that can, and does not stand back; None if kernels are forced and cannot run."""
    for backend in BACKENDS:
        is_kernel = backend.name.startswith("triton")
        if (choice == "reference" and is_kernel) or (choice == "triton" and not is_kernel):
            continue
        if backend.not_supported_reasons(problem) or (choice == "auto" and backend.stands_back(problem)):
            continue
        return backend.name
    return None
