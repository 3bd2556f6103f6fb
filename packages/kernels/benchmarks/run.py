"""Measure the kernels on this machine's GPU: `python packages/kernels/benchmarks/run.py`.

It needs torch and triton; peers that are not installed are listed as absent. Numbers are compared with float64
before anything is timed, and wrong implementations are not timed. Each row is written when it is measured and an error
ends only its row. A repeated command measures what has no row yet, or what failed. `--tiny` runs everything at
meaningless sizes, also on a CPU, to test the runner; with `TRITON_INTERPRET=1` it runs our kernels too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import sys
import time
from collections.abc import Container, Iterator
from pathlib import Path

import torch
import torch._functorch.config

HERE = Path(__file__).parent
try:
    import vfm_kernels  # noqa: F401
except ModuleNotFoundError:  # run from the sources without installation
    sys.path.insert(0, str(HERE.parent / "src"))

from checking import Error, as_tuple, check, one_line  # noqa: E402
from page import write, write_not_measured  # noqa: E402
from problems import OURS, Problem  # noqa: E402
from records import Row, Step, Table, keep_about  # noqa: E402
from shapes import GRID, REAL, TINY  # noqa: E402
from steps import NAMES, measured_steps  # noqa: E402
from timing import Roof, Run, measure, measured_roof, own_stream  # noqa: E402

from vfm_kernels.dispatch.measured import versions as installed_versions  # noqa: E402

STARTED = time.monotonic()
UNFINISHED = 75  # exit code: another call is needed
PEERS = ("triton", "numpy", "flash-attn", "flash-attn-4", "xformers", "timm", "open-clip-torch")


def main() -> None:
    """Parse the command line, measure, and write the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "kernels.md"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own_stream(device)
    if device.type == "cpu" and not options.tiny:
        if (options.out / "kernels.csv").exists():
            print("no CUDA device: nothing is measured; the measured page is kept")
            return
        write_not_measured(page, list(_measured()))
        print(f"no CUDA device: nothing is measured; see {page}")
        return
    roof = measured_roof(device, 64 if options.tiny else 8192)
    about = _about(device, roof)
    if options.tiny:
        about |= {"sizes": "tiny: a test of the runner, the numbers mean nothing"}
    keep_about(options.out / "about.json", about)
    rows, steps = Table(options.out / "kernels.csv", Row), Table(options.out / "steps.csv", Step)
    if options.again:
        rows.forget(lambda row: row.group in options.only)
        steps.forget(lambda step: step.group in options.steps)
    # A compiled graph whose backward is walked many times must keep its saved tensors.
    with torch._functorch.config.patch(donated_buffer=False):
        shapes = GRID if options.grid else TINY if options.tiny else REAL
        shapes = [entry for entry in shapes if _name(entry) in options.only]
        for row in _measured_rows(shapes, device, options.repeats, roof, rows):
            rows.append(row)
            write(page, about, rows.rows, steps.rows)
            _stop_if_late(options.seconds)
    for step in itertools.chain.from_iterable(
        measured_steps(name, device, options.tiny, max(2, options.repeats // 5), steps) for name in options.steps
    ):
        steps.append(step)
        write(page, about, rows.rows, steps.rows)
        _stop_if_late(options.seconds)
    print(page)
    if wrong := [row for row in rows.rows if row.implementation in OURS and row.note.startswith(("wrong", "failed"))]:
        sys.exit(
            f"{len(wrong)} of our implementations are wrong or fail: {wrong[0].op} {wrong[0].shape}: {wrong[0].note}"
        )


def _stop_if_late(seconds: float | None) -> None:
    if seconds is not None and time.monotonic() - STARTED > seconds:
        print(f"stopped after {seconds:.0f} s; the same command measures the rest", flush=True)
        sys.exit(UNFINISHED)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT") or HERE / "results", help="default: $OUT or results/"
    )
    parser.add_argument("--tiny", action="store_true", help="meaningless sizes for a CPU, to test the runner")
    parser.add_argument("--only", nargs="*", metavar="OP", help="measure these ops; all by default")
    parser.add_argument(
        "--steps",
        nargs="*",
        metavar="MODEL",
        help="measure training steps of these models; all by default, none with --only",
    )
    parser.add_argument("--grid", action="store_true", help="the sizes of the table of choices, see fill_table.py")
    parser.add_argument("--again", action="store_true", help="measure anew what has a row already")
    parser.add_argument("--seconds", type=float, help=f"stop before the next row after so long, exit code {UNFINISHED}")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    ops = list(dict.fromkeys(map(_name, REAL)))
    if options.only is None:
        options.only = [] if options.steps else ops
        options.steps = list(NAMES) if options.steps is None else options.steps
    options.steps = options.steps or []
    for flag, chosen, allowed in (("--only", options.only, ops), ("--steps", options.steps, NAMES)):
        if unknown := [name for name in chosen if name not in allowed]:
            parser.error(f"{flag}: expected one of {', '.join(allowed)}, got {unknown[0]}")
    return options


def _measured_rows(
    shapes: list[tuple], device: torch.device, repeats: int, roof: Roof, done: Table[Row]
) -> Iterator[Row]:
    for build, arguments, smaller in shapes:
        try:
            problem = build(device, **arguments)
            if not all(key in done for key in problem.keys):
                yield from _rows(problem, check(build(device, **arguments | smaller)), roof, device, repeats, done)
        except Exception as error:  # the other shapes are still measured
            yield Row(_name((build, arguments)), str(arguments), "", "all", note=one_line(error))
        _stop_if_unusable(device)
        torch.compiler.reset()


def _stop_if_unusable(device: torch.device) -> None:
    """End the process after an error that all further calls would repeat, such as an illegal memory access."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            sys.exit(f"{one_line(error)}; no further call can succeed in this process: repeat the command to go on")


def _rows(
    problem: Problem,
    errors: dict[str, Error | str],
    roof: Roof,
    device: torch.device,
    repeats: int,
    done: Container[tuple[str, ...]] = (),
) -> Iterator[Row]:
    for name, reason in problem.refused.items():
        if (problem.op, problem.shape, "", name) not in done:
            yield Row(problem.op, problem.shape, "", name, note=reason)
    directions = {"forward": problem.forward, "backward": problem.backward}
    for (name, function), direction in itertools.product(problem.implementations.items(), directions):
        where, cost, error = (problem.op, problem.shape, direction, name), directions[direction], errors[name]
        if where in done:
            continue
        if isinstance(error, str):
            yield Row(*where, note=error)
        elif not error.holds:
            yield Row(*where, error.relative, note=f"wrong: above {error.allowed:.1e}, so not timed")
        else:
            work = (cost.num_bytes, cost.flops)
            try:
                timing = measure(_run(function, problem.inputs, direction), device, repeats)
            except Exception as failure:  # the others are still measured
                yield Row(*where, error.relative, note=one_line(failure))
                continue
            yield Row.of(where, problem.size, error.relative, error.launches, timing, work, roof.milliseconds(*work))


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
        "installed": installed_versions(),
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
    names = {"swiglu": "swiglu_subln", "masked_cosine": "masked_cosine_loss", "rotation": "rotate"}
    return arguments.get("loss") or names.get(build.__name__, build.__name__)


if __name__ == "__main__":
    main()
