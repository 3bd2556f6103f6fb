"""CPU seconds to index a tar, a folder and tables of small images, in turns with another checkout.

    python packages/core/benchmarks/indexing.py [--other OLD_CHECKOUT] [--rounds 9] [--samples 10000]

Each measurement starts a process, which indexes the data twice, and counts the second time. `tar` has jpg, txt,
json and a member that is not read; `headers` is the same tar without opening the images. The table has the medians of
all rounds.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

KINDS = ("tar", "headers", "folder", "csv", "captions")
SIDE = 64
SOURCES = ("packages/core/src", "packages/kernels/src")


def write_data(root: Path, num_samples: int) -> None:
    """Write the same images as a tar, a folder with captions, and a table."""
    from vfm.data import write_tar

    rng = np.random.default_rng(0)
    (root / "folder").mkdir(parents=True)
    rows = []
    for number in range(num_samples):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "JPEG")
        members = {"jpg": buffer.getvalue(), "txt": b"a caption", "json": b'{"width": 64}', "seg": bytes(100)}
        rows.append((f"{number:06d}", members))
        (root / f"folder/{number:06d}.jpg").write_bytes(buffer.getvalue())
        (root / f"folder/{number:06d}.txt").write_bytes(b"a caption")
    write_tar(root / "x.tar", rows)
    with (root / "x.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "caption"])
        table.writerows([f"folder/{number:06d}.jpg", "a caption"] for number in range(num_samples))


def measure(kind: str, root: Path) -> float:
    """Index the data of a kind twice, and return the CPU seconds of the second time."""
    from vfm.data.pairs.stages import Pairs
    from vfm.interfaces import Context

    fields: dict[str, object] = {"path": str(root / {"folder": "folder"}.get(kind, "x.tar"))}
    if kind == "headers":
        fields["verify"] = False
    if kind in ("csv", "captions"):
        fields["path"] = str(root / "x.csv")
        fields["images"] = kind == "csv"
    seconds = 0.0
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=root) as folder:
            begun = time.process_time()
            Pairs(kind="data.pairs", name="d", **fields).run(Context("d", Path(folder), Path(folder), {}))
            seconds = time.process_time() - begun
    return seconds


def in_turns(checkouts: list[Path], root: Path, rounds: int) -> dict[tuple[str, Path], list[float]]:
    """Measure each kind in each checkout, in turns."""
    seconds: dict[tuple[str, Path], list[float]] = {}
    for _ in range(rounds):
        for kind in KINDS:
            for checkout in checkouts:
                path = os.pathsep.join(str(checkout / source) for source in SOURCES)
                words = [sys.executable, __file__, "--measure", kind, "--root", str(root)]
                environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
                seconds.setdefault((kind, checkout), []).append(float(done.stdout.split()[-1]))
    return seconds


def main() -> None:
    """Print a row for each kind of data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--measure", choices=KINDS)
    parser.add_argument("--root", type=Path)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.measure, args.root))
        return
    checkouts = [Path(__file__).resolve().parents[3], *filter(None, [args.other])]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root, args.samples)
        seconds = in_turns(checkouts, root, args.rounds)
    for kind in KINDS:
        medians = [median(seconds[kind, checkout]) for checkout in checkouts]
        change = f", {100 * (medians[0] / medians[1] - 1):+.1f} % to {args.other}" if args.other else ""
        print(f"{kind:10}" + " | ".join(f"{value:8.3f} s" for value in medians) + change, flush=True)


if __name__ == "__main__":
    main()
