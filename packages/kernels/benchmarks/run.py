"""Measures the kernels on this machine's GPU: `python packages/kernels/benchmarks/run.py`.

It needs torch, triton and numpy; what else it compares with is listed as absent if it is not installed. Numbers are
checked against float64 before anything is timed, and what is wrong is not timed. `--tiny` runs all of it at sizes that
mean nothing, on a CPU too: by that it is tested.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

HERE = Path(__file__).parent
try:
    import vfm_kernels  # noqa: F401
except ModuleNotFoundError:  # run from the sources, nothing installed
    sys.path.insert(0, str(HERE.parent / "src"))

from checking import Error, as_tuple, check, in_a_line  # noqa: E402
from page import Row, write, write_not_measured  # noqa: E402
from problems import OURS, REAL, TINY, Problem  # noqa: E402
from steps import NAMES, measured_steps  # noqa: E402
from timing import Roof, Run, measure, measured_roof  # noqa: E402

PEERS = ("triton", "numpy", "flash-attn", "flash-attn-4", "xformers", "timm", "open-clip-torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the page and the CSV files")
    parser.add_argument("--tiny", action="store_true", help="sizes of a CPU, to try the runner itself")
    parser.add_argument("--only", default="", metavar="OP", help="this op alone, and no training steps")
    parser.add_argument("--repeats", type=int, default=100)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not chosen.tiny:
        if (chosen.out / "kernels.csv").exists():
            print("no CUDA device: nothing is measured; the measured page stays as it is")
            return
        write_not_measured(chosen.out / "kernels.md", list(_measured()))
        print(f"no CUDA device: nothing is measured, and {chosen.out / 'kernels.md'} says so")
        return
    wanted = [entry for entry in (TINY if chosen.tiny else REAL) if not chosen.only or _name(entry) == chosen.only]
    if not wanted:
        parser.error(f"--only {chosen.only}: it must be one of {', '.join(dict.fromkeys(map(_name, REAL)))}")
    roof = measured_roof(device, 64 if chosen.tiny else 8192)
    rows = []
    for build, asked, smaller in wanted:
        errors = check(build(device, **asked | smaller))
        rows += list(_rows(build(device, **asked), errors, roof, device, chosen.repeats))
        print(rows[-1].op, rows[-1].shape, flush=True)
    steps = [] if chosen.only else list(measured_steps(device, chosen.tiny, max(2, chosen.repeats // 5)))
    about = _about(device, roof)
    if chosen.tiny:
        about |= {"sizes": "tiny: the runner was tried, and no figure here means anything"}
    write(chosen.out, about, rows, steps)
    print(chosen.out / "kernels.md")
    if wrong := [row for row in rows if row.implementation in OURS and row.said.startswith(("wrong", "failed"))]:
        sys.exit(f"{len(wrong)} of ours are wrong or fail: {wrong[0].op} {wrong[0].shape}: {wrong[0].said}")


def _rows(
    problem: Problem, errors: dict[str, Error | str], roof: Roof, device: torch.device, repeats: int
) -> Iterator[Row]:
    directions = {"forward": problem.forward, "backward": problem.backward}
    for (name, function), direction in itertools.product(problem.implementations.items(), directions):
        where, cost, error = (problem.op, problem.shape, direction, name), directions[direction], errors[name]
        if isinstance(error, str):
            yield Row(*where, said=error)
        elif not error.holds:
            yield Row(*where, error.relative, said=f"wrong: above {error.allowed:.1e}, so not timed")
        else:
            work = (cost.num_bytes, cost.flops)
            try:
                timing = measure(_run(function, problem.inputs, direction), device, repeats)
            except torch.OutOfMemoryError as full:
                yield Row(*where, error.relative, said=in_a_line(full))
                continue
            yield Row.of(where, error.relative, timing, work, roof.milliseconds(*work))
    for name, reason in problem.refused.items():
        yield Row(problem.op, problem.shape, "", name, said=reason)


def _run(function, inputs: list[torch.Tensor], direction: str) -> Run:
    """The op alone, or its gradient alone: the graph is made once and walked again and again."""
    if direction == "forward":

        def forward() -> None:
            with torch.no_grad():
                function(*inputs)

        return forward
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    outputs = as_tuple(function(*(leaf.clone() for leaf in leaves)))  # an op may write into what it is given
    grads = [torch.randn_like(out) for out in outputs]
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def _about(device: torch.device, roof: Roof) -> dict[str, str]:
    card = "a CPU"
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        card = f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB"
    versions = {
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }
    for package in PEERS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "card": card,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "copy": f"{roof.bytes_per_second / 1e12:.3f} TB/s read and written",
        "bf16 matrix product": f"{roof.flops_per_second / 1e12:.1f} TFLOP/s",
    }


def _measured() -> Iterator[str]:
    for build, asked, _ in REAL:
        yield f"{_name((build, asked))}: " + ", ".join(
            f"{name} {value}" for name, value in asked.items() if name != "loss"
        )
    yield f"training steps of {', '.join(NAMES)}: with the library's layers and with ours, each also compiled"


def _name(entry: tuple) -> str:
    build, asked = entry[:2]
    names = {"rope": "rope_2d", "swiglu": "swiglu_subln", "masked_cosine": "masked_cosine_loss"}
    return asked.get("loss") or names.get(build.__name__, build.__name__)


if __name__ == "__main__":
    main()
