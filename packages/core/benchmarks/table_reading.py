"""CPU milliseconds to read a sample of a Parquet table in random order, in turns with another checkout.

    python packages/core/benchmarks/table_reading.py [--other OLD_CHECKOUT] [--rounds 3] [--rows 100000] [--bytes 3000]
        [--tables 2]

Tables of equal parts of the rows have an `image` of random bytes and a `caption`, in row groups of 100, 1,000 and
10,000 rows. A process reads samples of a window with all tables in the order of a training, 64 at a time, without
decoding the images. The time of the first samples, which open the tables, does not count. `files` is a folder of the
same images with captions in `txt` files. The columns are the other checkout, this one, and this one with `arrow_copy`.
The numbers are medians of all rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SOURCES = ("packages/core/src", "packages/kernels/src")
NUM_FILES = 2000  # of the folder
SECONDS = 2.0  # a measurement stops after these
PNG = b"\x89PNG\r\n\x1a\n"


def write_data(root: Path, groups: list[int], rows: int, size: int, tables: int) -> None:
    """Write the same images as tables of each size of row groups, and the first ones as files."""
    rng = np.random.default_rng(0)
    for part in range(tables):
        images = [PNG + rng.bytes(size - len(PNG)) for _ in range(rows // tables)]
        table = pa.table({"image": images, "caption": [f"caption {number}" for number in range(rows // tables)]})
        for group in groups:
            (root / str(group)).mkdir(exist_ok=True)
            pq.write_table(table, root / str(group) / f"{part}.parquet", row_group_size=group)
    (root / "files").mkdir()
    for number, image in enumerate(images[:NUM_FILES]):
        (root / f"files/{number:06d}.png").write_bytes(image)
        (root / f"files/{number:06d}.txt").write_text(f"caption {number}")


def measure(path: Path, fields: dict[str, bool]) -> float:
    """Index the data, and return the CPU milliseconds to read a sample."""
    from vfm.data import open_dataset
    from vfm.data.loading.reader import READ_TOGETHER, TrainingReader
    from vfm.data.pairs.stages import Pairs
    from vfm.interfaces import Context

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        stage = Pairs(kind="data.pairs", name="d", path=str(path), verify=False, **fields)
        source = open_dataset(stage.run(Context("d", Path(folder), Path(folder), {})))
        reader = TrainingReader(source, len, None, None, seed=0, max_bad_fraction=0.0)
        order = source.order(seed=0, shuffle_shards=max(8, len(source.shard_sizes)))
        opening = READ_TOGETHER * max(1, len(source.shard_sizes) // 8)  # samples that open the files
        count, begun = 0, 0.0
        while count <= opening or time.process_time() - begun < SECONDS:
            if count == opening:
                begun = time.process_time()
            list(reader.samples(order.of_epochs(count, count + READ_TOGETHER)))
            count += READ_TOGETHER
        return 1000 * (time.process_time() - begun) / (count - opening)


def in_process(checkout: Path, path: Path, copy: bool) -> float:
    """Measure in a process that imports the code of a checkout."""
    sources = os.pathsep.join(str(checkout / source) for source in SOURCES)
    words = [sys.executable, __file__, "--measure", str(path), *(["--copy"] if copy else [])]
    environment = {**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print a row for each size of row groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=3000)
    parser.add_argument("--tables", type=int, default=2)
    parser.add_argument("--groups", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--copy", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.measure, {"arrow_copy": True} if args.copy else {}))
        return
    here = Path(__file__).resolve().parents[3]
    columns = [*([(args.other, False)] if args.other else []), (here, False), (here, True)]
    results: dict[tuple[str, Path, bool], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root, args.groups, args.rows, args.bytes, args.tables)
        kinds = [*map(str, args.groups), "files"]
        for _, kind, (checkout, copy) in product(range(args.rounds), kinds, columns):
            if kind != "files" or not copy:
                results[kind, checkout, copy].append(in_process(checkout, root / kind, copy))
                print(kind, checkout, copy, results[kind, checkout, copy][-1], file=sys.stderr, flush=True)
    for kind in kinds:
        numbers = [results[kind, *column] for column in columns]
        print("|", kind, "|", " | ".join(f"{median(some):.3f}" if some else "" for some in numbers), "|")


if __name__ == "__main__":
    main()
