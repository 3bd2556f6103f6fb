"""Count the files of ours that are entered on three trips: mask to loss, image to boxes, recipe to page.

    python packages/core/benchmarks/trips.py [--verbose]

A file counts if one of its functions runs between the start and the end of the trip. Imports do not count. The trip of
a caption from a tar to the loss is in `sample_path.py`. Needs all packages.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

ROOTS = tuple(f"{os.sep}{name}{os.sep}" for name in ("vfm", "vfm_clip", "vfm_eva", "vfm_kernels"))
WORLD = {"image_size": 64, "shapes": ["circle", "square"], "colours": ["red", "green"], "variety": 0.1}
SHORT: dict[str, Any] = {"steps": 2, "schedule": {"warmup_steps": 0}, "global_batch_size": 16}
DETECTOR = {
    "image_size": 64,
    "channels": 32,
    "proposals": {"num_convs": 1, "num_samples": 64, "before_nms": 100, "num_proposals": 32},
    "cascade": {"num_rois": 16, "positive_fraction": 0.5, "num_convs": 0, "hidden": 128, "mask_convs": 1},
}
TEACHER = {"kind": "clip.train", "name": "teacher", "model": "ViT-Pico-8-64", "data": "pool", **SHORT}
EVA = {"kind": "eva.pretrain", "name": "eva", "model": "eva02_pico_patch8_64", "teacher": "teacher", "data": "pool"}
DETECT = {"kind": "eva.detect", "name": "detector", "encoder": "eva", "data": "scenes", "detector": DETECTOR, **SHORT}
RECIPE: dict[str, Any] = {
    "runtime": {"threads": 1},
    "stages": [
        {"kind": "shapes.pool", "name": "pool", "num_samples": 64, "world": WORLD},
        {"kind": "shapes.scenes", "name": "scenes", "num_samples": 32, "world": WORLD, "scale": [0.12, 0.25]},
        {"kind": "shapes.classes", "name": "val", "num_samples": 16, "world": WORLD},
        TEACHER,
        {**EVA, "student": {"init": "eva02"}, **SHORT},
        {**DETECT, "schedule": {"type": "steps", "warmup_steps": 0}},
        {"kind": "eval.zero_shot", "name": "zero_shot", "models": ["teacher"], "data": "val"},
    ],
}


class Entered:
    """Profiler that collects the source files of vfm whose functions run during a trip.

    Args:
        start: file and name of the function that begins the trip. Empty: the trip is all that runs.
    """

    def __init__(self, start: str = "") -> None:
        self.files: set[str] = set()
        self.start = start
        self.depth = 0 if start else 1

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Count a call if the trip has begun and has not ended."""
        code = frame.f_code
        begins = bool(self.start) and f"{Path(code.co_filename).name}:{code.co_name}" == self.start
        if event == "call":
            self.depth += begins
            ours = any(root in code.co_filename for root in ROOTS)
            if self.depth and ours and code.co_name != "<module>":
                self.files.add(code.co_filename)
        elif event == "return":
            self.depth -= begins


def entered(work: Callable[[], object], start: str = "") -> list[str]:
    """List the files of ours that are entered while `work` runs, or while its function `start` runs."""
    profiler = Entered(start)
    threading.setprofile(profiler)
    sys.setprofile(profiler)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return sorted(file.rpartition(f"{os.sep}src{os.sep}")[2] for file in profiler.files)


def main() -> None:
    """Print the number of files of each trip."""
    import vfm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbose", action="store_true", help="also print the files")
    options = parser.parse_args()
    image = Image.fromarray(np.full((64, 64, 3), 128, np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        run = vfm.run(RECIPE, store=folder, progress=False)
        again = {"eva.lr": 1e-3}
        trips = {
            "a recipe to its page": entered(lambda: vfm.run(RECIPE, set={"val.seed": 1}, store=folder, progress=False)),
            "a mask to the loss": entered(
                lambda: vfm.run(RECIPE, set=again, store=folder, progress=False), "pretrain.py:pretrain_eva"
            ),
            "an image to its boxes": entered(lambda: vfm.predict(run["detector"], image), "dense.py:find"),
        }
    for name, files in trips.items():
        print(f"{name}: {len(files)} files")
        if options.verbose:
            print("  " + "\n  ".join(files))


if __name__ == "__main__":
    main()
