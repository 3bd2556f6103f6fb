"""Measure the kernels on this machine's GPU: `python packages/kernels/benchmarks/run.py`.

It needs torch, triton and numpy; peers that are not installed are listed as absent. Numbers are compared with float64
before anything is timed, and wrong implementations are not timed. `--tiny` runs everything at meaningless sizes, also
on a CPU, to test the runner.
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
except ModuleNotFoundError:  # run from the sources without installation
    sys.path.insert(0, str(HERE.parent / "src"))

from checking import Error, as_tuple, check, one_line  # noqa: E402
from page import Row, write, write_not_measured  # noqa: E402
from problems import OURS, REAL, TINY, Problem  # noqa: E402
from steps import NAMES, measured_steps  # noqa: E402
from timing import Roof, Run, measure, measured_roof  # noqa: E402

PEERS = ("triton", "numpy", "flash-attn", "flash-attn-4", "xformers", "timm", "open-clip-torch")


def main() -> None:
    """Parse the command line, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the page and the CSV files")
    parser.add_argument("--tiny", action="store_true", help="meaningless sizes for a CPU, to test the runner")
    parser.add_argument("--only", default="", metavar="OP", help="only this op and no training steps")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        if (options.out / "kernels.csv").exists():
            print("no CUDA device: nothing is measured; the measured page is kept")
            return
        write_not_measured(options.out / "kernels.md", list(_measured()))
        print(f"no CUDA device: nothing is measured; see {options.out / 'kernels.md'}")
        return
    entries = [entry for entry in (TINY if options.tiny else REAL) if not options.only or _name(entry) == options.only]
    if not entries:
        parser.error(f"--only {options.only} is not an op; choose from {', '.join(dict.fromkeys(map(_name, REAL)))}")
    roof = measured_roof(device, 64 if options.tiny else 8192)
    rows = []
    for build, arguments, smaller in entries:
        errors = check(build(device, **arguments | smaller))
        rows += list(_rows(build(device, **arguments), errors, roof, device, options.repeats))
        print(rows[-1].op, rows[-1].shape, flush=True)
    steps = [] if options.only else list(measured_steps(device, options.tiny, max(2, options.repeats // 5)))
    about = _about(device, roof)
    if options.tiny:
        about |= {"sizes": "tiny: a test of the runner, the numbers mean nothing"}
    write(options.out, about, rows, steps)
    print(options.out / "kernels.md")
    if wrong := [row for row in rows if row.implementation in OURS and row.note.startswith(("wrong", "failed"))]:
        sys.exit(
            f"{len(wrong)} of our implementations are wrong or fail: {wrong[0].op} {wrong[0].shape}: {wrong[0].note}"
        )


def _rows(
    problem: Problem, errors: dict[str, Error | str], roof: Roof, device: torch.device, repeats: int
) -> Iterator[Row]:
    directions = {"forward": problem.forward, "backward": problem.backward}
    for (name, function), direction in itertools.product(problem.implementations.items(), directions):
        where, cost, error = (problem.op, problem.shape, direction, name), directions[direction], errors[name]
        if isinstance(error, str):
            yield Row(*where, note=error)
        elif not error.holds:
            yield Row(*where, error.relative, note=f"wrong: above {error.allowed:.1e}, so not timed")
        else:
            work = (cost.num_bytes, cost.flops)
            try:
                timing = measure(_run(function, problem.inputs, direction), device, repeats)
            except torch.OutOfMemoryError as full:
                yield Row(*where, error.relative, note=one_line(full))
                continue
            yield Row.of(where, error.relative, timing, work, roof.milliseconds(*work))
    for name, reason in problem.refused.items():
        yield Row(problem.op, problem.shape, "", name, note=reason)


def _run(function, inputs: list[torch.Tensor], direction: str) -> Run:
    """Return a function that runs the op, or only its gradient: the graph is built once and reused."""
    if direction == "forward":

        def forward() -> None:
            with torch.no_grad():
                function(*inputs)

        return forward
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    outputs = as_tuple(function(*leaves))
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
    for build, arguments, _ in REAL:
        yield f"{_name((build, arguments))}: " + ", ".join(
            f"{name} {value}" for name, value in arguments.items() if name != "loss"
        )
    yield f"training steps of {', '.join(NAMES)}: with the library's layers and with ours, each also compiled"


def _name(entry: tuple) -> str:
    build, arguments = entry[:2]
    names = {"swiglu": "swiglu_subln", "masked_cosine": "masked_cosine_loss"}
    return arguments.get("loss") or names.get(build.__name__, build.__name__)


if __name__ == "__main__":
    main()
