"""What every backend of attention says to a problem, in words."""

from typing import Any

from torch import Tensor

from vfm_kernels.backends import BACKENDS, first_choice
from vfm_kernels.dispatch import choice_in_force
from vfm_kernels.pattern import Pattern
from vfm_kernels.problem import Problem, problem_of


def explain(q: Tensor, k: Tensor, v: Tensor, **pattern: Any) -> None:
    """Prints which backend `attention` would take for these tensors, and what each of the others says.

    Args:
        q: (B, N, H, D).
        k: like `q`.
        v: like `q`.
        **pattern: the keywords of `attention`, without `backend`.

    Raises:
        ValueError: shapes that do not fit.
    """
    known = Pattern.of(q, k, v, **pattern)
    sizes = (*map(int, q.shape), int(known.max_seqlen))
    print(told(problem_of(q.device, q.dtype, sizes, known.causal, known.cu_seqlens is not None)))


def told(problem: Problem, here: bool = True) -> str:
    """The list, one line a backend.

    Args:
        problem: what is to be computed.
        here: whether the problem's device is one of this machine.
    """
    kind = ", ".join(word for word, is_so in (("causal", problem.causal), ("variable length", problem.varlen)) if is_so)
    where = f"sm_{problem.capability[0]}{problem.capability[1]}" if problem.device == "cuda" else problem.device
    dtype = str(problem.dtype).removeprefix("torch.")
    lines = [f"attention of {problem.shape} in {dtype} on {where}{f', {kind}' if kind else ''}"]
    if not here:
        lines.append("there is no CUDA device on this machine: this is what each would say, not what runs")
    taken = _taken(problem)
    for backend in BACKENDS:
        reasons = backend.not_supported_reasons(problem)
        if backend.name == taken:
            verdict = "taken"
        elif reasons:
            verdict = f"cannot: {'; '.join(reasons)}"
        elif (reason := backend.stands_back(problem)) is not None:
            verdict = f"can, and stands back: {reason}"
        else:
            verdict = "can"
        lines.append(f"  {backend.name:<15} {verdict}")
    return "\n".join(lines)


def _taken(problem: Problem) -> str | None:
    choice = choice_in_force()
    return "sdpa" if problem.device != "cuda" and choice != "triton" else first_choice(problem, choice)
