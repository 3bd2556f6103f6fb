"""The way of a caption from a tar to the loss of `clip.train`: files entered, calls between files, processor time.

    python packages/core/benchmarks/sample_path.py [--other OLD_CHECKOUT] [--rounds 7]

A pool of two tars with `jpg`, `txt` and `json` is read in the training's order into batches of 256, and each batch goes
to the contrastive loss of a tiny model. `files` are our source files entered on the whole way, `files a sample` those
entered once a sample at least, `crossings` the calls from one of our files into another. Microseconds are the
processor's for each sample read (`TrainingData.source.sample`, without decoding) and for each sample of a batch
(decoded, cropped and tokenised); the smallest of all rounds. With `--other`, another checkout is measured in turns with
this one, each in processes of its own. Needs vfm-clip.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

NUM_SHARDS, PER_SHARD, BATCH, SIDE = 2, 2048, 256, 32
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
ROOTS = tuple(f"{os.sep}{name}{os.sep}" for name in ("vfm", "vfm_clip", "vfm_kernels"))


class Calls:
    """A profiler that counts calls into our files, and calls from one of them into another."""

    def __init__(self) -> None:
        self.entered: Counter[str] = Counter()
        self.crossings: Counter[tuple[str, str]] = Counter()
        self.functions: Counter[str] = Counter()
        self.ours: dict[str, bool] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Count a call; generators that go on count as calls, as `sys.setprofile` sees them."""
        if event != "call" or not self.is_ours(file := frame.f_code.co_filename):
            return
        self.entered[file] += 1
        self.functions[f"{Path(file).name}:{frame.f_code.co_qualname}"] += 1
        caller = frame.f_back
        while caller and not self.is_ours(caller.f_code.co_filename):
            caller = caller.f_back
        if caller and caller.f_code.co_filename != file:
            self.crossings[caller.f_code.co_filename, file] += 1

    def is_ours(self, file: str) -> bool:
        """Return whether a file is one of this toolkit's."""
        if file not in self.ours:
            self.ours[file] = any(root in file for root in ROOTS)
        return self.ours[file]


def write_pool(directory: Path) -> None:
    """Write the tars and the index of the pool."""
    from vfm.data import DatasetSpec, Shard, write_index, write_tar

    rng = np.random.default_rng(0)
    shards = []
    for shard in range(NUM_SHARDS):
        path = directory / f"{shard:05d}.tar"
        write_tar(path, _members(rng))
        shards.append(Shard.of(path, PER_SHARD))
    write_index(directory, shards, DatasetSpec(texts={"en": "txt"}))


def _members(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, bytes]]]:
    for row in range(PER_SHARD):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
        record = json.dumps({"url": f"https://example.org/{row}.jpg", "width": 40}).encode()
        yield f"{row:06d}", {"jpg": buffer.getvalue(), "txt": f"a photo of thing {row}".encode(), "json": record}


def measure(directory: Path) -> dict[str, Any]:
    """Return the counts and the times of the installed code."""
    import torch

    from vfm.data import ImageTransform, TrainingData
    from vfm.data.index.source import Source
    from vfm.models import build_clip
    from vfm_clip.data import MakePair
    from vfm_clip.task import ClipTask

    torch.set_num_threads(1)
    clip = build_clip(MODEL)
    task, source = ClipTask(clip), Source(directory)
    make = MakePair(ImageTransform(SIDE, scale=(0.9, 1.0)), clip.tokenizer, {"en": 1.0})
    data = TrainingData(source, make, global_batch_size=BATCH)

    def way(first: int, last: int) -> None:
        for (batch,) in data.steps(first, last):
            task(task.prepare(batch.inputs))

    way(0, 2)
    calls, samples = Calls(), 4 * BATCH
    threading.setprofile(calls)
    sys.setprofile(calls)
    way(2, 6)
    sys.setprofile(None)
    threading.setprofile(None)
    places = data.order().of_epochs(0, 2 * PER_SHARD)
    read = _seconds(lambda: [source.sample(number, epoch) for epoch, number in places]) / len(places)
    made = _seconds(lambda: list(data.steps(0, 8))) / (8 * BATCH)
    return {
        "files": sorted(_short(file) for file in calls.entered),
        "files a sample": sorted(_short(file) for file, count in calls.entered.items() if count >= samples),
        "crossings": calls.crossings.total() / samples,
        "crossed": {f"{_short(a)} -> {_short(b)}": n / samples for (a, b), n in calls.crossings.most_common()},
        "functions": {name: count / samples for name, count in calls.functions.most_common(80)},
        "microseconds to read": 1e6 * read,
        "microseconds to make": 1e6 * made,
    }


def _seconds(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _short(file: str) -> str:
    return file.rpartition(f"{os.sep}src{os.sep}")[2]


def main() -> None:
    """Print the counts and times of this checkout, and of another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--verbose", action="store_true", help="print the crossings and the most frequent functions")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    here = Path(__file__).resolve().parents[3]
    with tempfile.TemporaryDirectory() as folder:
        write_pool(Path(folder))
        checkouts = [here, *([options.other.resolve()] if options.other else [])]
        rounds = [[_in_process(checkout, folder) for checkout in checkouts] for _ in range(options.rounds)]
    for checkout, results in zip(checkouts, zip(*rounds, strict=True), strict=True):
        first = results[0]
        print(f"{checkout}")
        print(f"  files {len(first['files'])}, a sample {len(first['files a sample'])}")
        print(f"  crossings a sample {first['crossings']:.1f}")
        for name in ("microseconds to read", "microseconds to make"):
            times = sorted(result[name] for result in results)
            print(f"  {name} {times[0]:.1f} (median {times[len(times) // 2]:.1f})")
        if options.verbose:
            print(json.dumps({name: first[name] for name in ("files", "crossed", "functions")}, indent=1))


def _in_process(checkout: Path, folder: str) -> dict[str, Any]:
    sources = os.pathsep.join(str(path) for path in sorted(checkout.glob("packages/*/src")))
    environment = {**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", folder]
    return dict(json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout))


if __name__ == "__main__":
    main()
