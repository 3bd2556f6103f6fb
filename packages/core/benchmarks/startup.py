"""CPU seconds (user and system) of small commands and of the imports of the libraries that they need, in turns.

    python packages/core/benchmarks/startup.py --model CLIP --image photo.jpg [--before FOLDER]

`--before` is another checkout of the repository, whose code then runs in turns with this one's.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

LIBRARIES = "import pydantic, typer, yaml, pluggy, lazy_loader, fsspec, rich.table, rich.console"  # of `vfm plan`
WORKER = "import vfm_curation.match.match"  # a process of a pool imports the module of its task


def commands(model: str, image: str) -> dict[str, tuple[list[str], str]]:
    """List the words after `python` of each row, and the row that it is divided by."""
    vfm = ["-m", "vfm"]
    return {
        "import torch": (["-c", "import torch"], "import torch"),
        "the libraries of vfm plan": (["-c", LIBRARIES], "the libraries of vfm plan"),
        "vfm predict, one image": ([*vfm, "predict", model, image, "--classes", "red,blue"], "import torch"),
        "vfm plan quickstart --estimate": ([*vfm, "plan", "quickstart", "--estimate"], "import torch"),
        "vfm plan quickstart": ([*vfm, "plan", "quickstart"], "the libraries of vfm plan"),
        "vfm --help": ([*vfm, "--help"], "the libraries of vfm plan"),
        "imports of a worker of curation": (["-c", WORKER], "import torch"),
    }


def cpu_seconds(words: list[str], checkout: Path | None) -> float:
    """Measure the CPU seconds of a process, of this checkout or another."""
    sources = ":".join(str(path) for path in sorted(checkout.glob("packages/*/src"))) if checkout else ""
    before = _of_children()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": sources}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first round writes the bytecode that the others read
    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
    return _of_children() - before


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name in ("model", "image"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = commands(options.model, options.image)
    checkouts = [None, *([options.before.resolve()] if options.before else [])]
    seconds: dict[tuple[str, Path | None], list[float]] = {}
    for number in range(options.rounds + 1):
        for name, (words, _) in rows.items():
            for checkout in checkouts if "vfm" in " ".join(words) else checkouts[:1]:
                value = cpu_seconds(words, checkout)
                if number:  # the first round writes bytecode
                    seconds.setdefault((name, checkout), []).append(value)
    medians = {row: statistics.median(values) for row, values in seconds.items()}
    print(
        "| | now, s | "
        + "before, s | " * (len(checkouts) - 1)
        + "now, ratio | "
        + "before, ratio | " * (len(checkouts) - 1)
    )
    print("|---|" + "--:|" * 2 * len(checkouts))
    for name, (_, divisor) in rows.items():
        values = [medians.get((name, checkout), math.nan) for checkout in checkouts]
        cells = [f"{value:.2f}" for value in values] + [f"{value / medians[divisor, None]:.2f}" for value in values]
        print(f"| {name} | {' | '.join(cells)} |".replace("nan", ""))


if __name__ == "__main__":
    main()
