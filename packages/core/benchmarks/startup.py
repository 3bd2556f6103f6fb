"""CPU seconds of small commands, beside the imports of the libraries that they need, in turns.

    python packages/core/benchmarks/startup.py --model CLIP --picture photo.jpg --data TAR [--before FOLDER]

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

IMPORTS = ("torch", "torchvision", "timm", "open_clip", "vfm_kernels")
# What timm and open_clip import if it is installed, and can do without.
LEAN = "import sys; sys.modules.update(dict.fromkeys(('wandb', 'transformers', 'av'))); import open_clip"


def commands(model: str, picture: str, data: str) -> dict[str, list[str]]:
    """Return the words after `python` of each row of the table."""
    vfm = ["-m", "vfm"]
    return {
        **{f"import {name}": ["-c", f"import {name}"] for name in IMPORTS},
        "import open_clip, without wandb, transformers and av": ["-c", LEAN],
        "vfm predict, one picture": [*vfm, "predict", model, picture, "--classes", "red,blue"],
        "vfm eval --dry-run": [*vfm, "eval", model, "--data", data, "--tasks", "retrieval", "--dry-run"],
        "vfm --help": [*vfm, "--help"],
        "vfm plan quickstart": [*vfm, "plan", "quickstart"],
        "vfm stages": [*vfm, "stages"],
    }


def cpu_seconds(words: list[str], checkout: Path | None) -> float:
    """Return the user's CPU seconds of a process, of this checkout or another."""
    sources = ":".join(str(path) for path in sorted(checkout.glob("packages/*/src"))) if checkout else ""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": sources}
    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name in ("model", "picture", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = commands(options.model, options.picture, options.data)
    checkouts = [None, *([options.before.resolve()] if options.before else [])]
    seconds: dict[tuple[str, Path | None], list[float]] = {}
    for number in range(options.rounds + 1):
        for name, words in rows.items():
            for checkout in checkouts if "vfm" in name else checkouts[:1]:
                found = cpu_seconds(words, checkout)
                if number:  # the first round writes bytecode
                    seconds.setdefault((name, checkout), []).append(found)
    torch = statistics.median(seconds["import torch", None])
    print("| | " + " | ".join(["now", "before"][: len(checkouts)]) + " | now, in imports of torch |")
    print("|---|" + "--:|" * (len(checkouts) + 1))
    for name in rows:
        medians = [statistics.median(seconds.get((name, checkout), [math.nan])) for checkout in checkouts]
        cells = ["" if math.isnan(value) else f"{value:.2f}" for value in medians]
        print(f"| {name} | {' | '.join(cells)} | {medians[0] / torch:.2f} |")


if __name__ == "__main__":
    main()
