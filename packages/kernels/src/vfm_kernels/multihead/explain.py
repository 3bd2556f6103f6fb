"""Report of the backend that an attention takes, and why the others cannot run or are not preferred."""

from typing import Any

from torch import Tensor

from vfm_kernels.dispatch.dispatch import SETTINGS
from vfm_kernels.multihead.backends import BACKENDS, first_choice
from vfm_kernels.multihead.problem import Problem, problem_on
from vfm_kernels.pattern import Pattern


def explain(q: Tensor, k: Tensor, v: Tensor, **pattern: Any) -> None:
    """Print which backend `attention` would take for these tensors, and why it would not take each of the others.

    Args:
        q: (B, N, H, D).
        k: Like `q`.
        v: Like `q`.
        **pattern: The keywords of `attention` except `backend`.

    Raises:
        ValueError: If shapes do not fit.
    """
    masked = pattern.pop("visible", None) is not None
    checked = Pattern.from_arguments(q, k, v, **pattern)
    sizes = (*map(int, q.shape), int(checked.max_seqlen))
    kind = (checked.causal, checked.cu_seqlens is not None, checked.sin is not None, masked)
    print(report(problem_on(q.device, q.dtype, sizes, *kind)))


def report(problem: Problem, device_exists: bool = True) -> str:
    """Format the report, one line for each backend.

    Args:
        problem: The attention.
        device_exists: Whether this machine has the problem's device.
    """
    flags = {"causal": problem.causal, "variable length": problem.varlen, "boolean mask": problem.masked}
    kind = "".join(f", {word}" for word, is_set in flags.items() if is_set)
    on_gpu = problem.device == "cuda"
    if on_gpu:
        where = f"sm_{problem.capability[0]}{problem.capability[1]}"
    else:
        where = problem.device
    dtype = str(problem.dtype).removeprefix("torch.")
    lines = [f"attention of {problem.shape} in {dtype} on {where}{kind}"]
    if not device_exists:
        lines.append("this machine has no CUDA device: the list is what would be chosen there")
    if not on_gpu and SETTINGS.choice != "triton":
        chosen: str | None = "sdpa"  # as in `backends.choose`
    else:
        chosen = first_choice(problem, SETTINGS.choice)
    for backend in BACKENDS:
        reasons = backend.not_supported_reasons(problem)
        if backend.name == chosen:
            status = "chosen"
        elif reasons:
            status = f"cannot run: {'; '.join(reasons)}"
        elif backend.is_kernel and SETTINGS.choice == "auto":
            status = "can run; no measurement says that it is the fastest here"
        else:
            status = "can run"
        lines.append(f"  {backend.name:<15} {status}")
    return "\n".join(lines)
