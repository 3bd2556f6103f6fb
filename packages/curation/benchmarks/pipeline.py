"""Both passes of curation end to end from parquet: captions per second and core, and memory as the pool grows.

    python packages/curation/benchmarks/pipeline.py --captions captions_en.tsv.gz

Makes pools of several sizes from the given captions (each copy except the first ends in its own number), runs
`curation.match` and `curation.balance` over each in a process of its own, on one core, and writes `pipeline.json` and
`pipeline.md` into `results/`. Needs no model and no network; about three minutes, seconds with `--quick`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm.data import DatasetSpec, Shard, write_index
from vfm.plugin import Context, Pool
from vfm_curation.matches import COUNTS_FILE, read_shards
from vfm_curation.probabilities import keep_probability
from vfm_curation.stages import BuildMetadata, MatchTexts, MetaclipBalance
from vfm_curation.subset import balance_shard

SIZES, QUICK_SIZES = (200_000, 500_000, 1_000_000, 2_000_000), (2_000, 4_000)
SHARD_SIZE, QUICK_SHARD_SIZE = 50_000, 1_000
NUM_ENTRIES, QUICK_ENTRIES = 500_000, 5_000
NUM_COMMON = 200  # most frequent words, which are not entries: a text then has about 3.5 entries, as in the paper


def read_captions(path: Path) -> list[str]:
    """Return the last column of each line of a table with tabs, which may be gzipped."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").rpartition("\t")[2] for line in lines]


def write_entries(path: Path, captions: list[str], number: int) -> None:
    """Write the captions' words except the most frequent, and generated ones: a matcher of realistic size."""
    counts = Counter(word for caption in captions for word in caption.split())
    words = [word for word, _ in counts.most_common()][NUM_COMMON:number]
    path.write_text("\n".join([*words, *(f"filler{i} word" for i in range(number - len(words)))]), encoding="utf-8")


def varied(captions: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (uid, caption) without end."""
    number = 0
    while True:
        for caption in captions:
            uid = hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()
            yield uid, caption if number < len(captions) else f"{caption} {number}"
            number += 1


def write_pool(folder: Path, captions: list[str], size: int, shard_size: int) -> None:
    """Write a pool of captions without images, in parquet shards."""
    folder.mkdir(parents=True)
    rows, shards = varied(captions), []
    for start in range(0, size, shard_size):
        uids, texts = zip(*islice(rows, min(shard_size, size - start)), strict=True)
        file = folder / f"{start:09d}.parquet"
        pq.write_table(pa.table({"uid": uids, "caption": texts}), file, compression="zstd")
        shards.append(Shard.of(file, len(uids), format="parquet"))
    spec = DatasetSpec(images=False, texts={"en": "caption"})
    Pool.create(folder, num_samples=write_index(folder, shards, spec))


class Clock:
    """CPU seconds of this process when each shard was finished; the first includes building the matcher."""

    def __init__(self) -> None:
        self.begun, self.at = time.process_time(), {}
        self.at: dict[int, float]

    def __call__(self, event: Any) -> None:
        """Record the time if a shard is finished."""
        if event.type == "progress":
            self.at[event.data["done"]] = time.process_time()


def run_stage(stage: Any, store: Path, send: Any, **inputs: Path) -> Any:
    """Run a stage as the flow does."""
    directory, work = store / stage.name, store / f".{stage.name}.work"
    for folder in (directory, work):
        folder.mkdir(parents=True)
    return stage.run(Context(stage.name, directory, work, inputs, send))


def measure(store: Path) -> dict[str, float]:
    """Measure both passes over `store/pool` with the entries of `store/entries`."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    clock = Clock()
    stage = MatchTexts(name="matches", pool="p", metadata="m")
    matches = run_stage(stage, store, clock, p=store / "pool", m=store / "entries")
    first, last = clock.at[1], clock.at[max(clock.at)]
    texts_after_first = matches.num_texts * (len(clock.at) - 1) / len(clock.at)
    found = {
        "captions": matches.num_texts,
        "match_seconds": last - clock.begun,
        "matched": matches.num_matched,
        "setup_seconds": first - clock.begun,
        "match_captions_per_second": texts_after_first / (last - first),
        "match_peak_mib": peak_mib(),
    }
    begun = time.process_time()
    t = max(20, matches.num_texts // 10_000)
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=t), store, lambda event: None, x=matches.path)
    found["balance_seconds"] = time.process_time() - begun
    found["balance_captions_per_second"] = matches.num_texts / found["balance_seconds"]
    found["kept_images"] = subset.num_samples
    found["peak_mib"] = peak_mib()
    probability = keep_probability(np.load(matches.path / COUNTS_FILE), t)
    shards = list(islice(read_shards(matches.path), 8))
    begun = time.process_time()
    drawn = sum(len(balance_shard(shard, probability, 0).kept) for shard in shards)
    found["draw_texts_per_second"] = drawn / (time.process_time() - begun)
    seconds = 1 / found["match_captions_per_second"] + 1 / found["balance_captions_per_second"]
    return {**found, "both_captions_per_second": 1 / seconds}


def peak_mib() -> float:
    """Return the peak memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def marginal(results: list[dict[str, float]]) -> dict[str, float]:
    """Return captions per second of each pass and of both, from the smallest pool to the largest, without set-up."""
    first, last = results[0], results[-1]
    captions = last["captions"] - first["captions"]
    seconds = {name: last[f"{name}_seconds"] - first[f"{name}_seconds"] for name in ("match", "balance")}
    seconds["both"] = sum(seconds.values())
    return {name: captions / value for name, value in seconds.items()}


def table(results: list[dict[str, float]], machine: str) -> str:
    """Return the results in Markdown."""
    head = ["captions", "pass 1, k/s", "pass 2, k/s", "both, k/s", "drawing, k/s", "set-up, s", "peak, MiB"]
    names = ("match_captions", "balance_captions", "both_captions", "draw_texts")
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for one in results:
        rates = [f"{one[f'{name}_per_second'] / 1000:,.0f}" for name in names]
        row = [f"{one['captions']:,}", *rates, f"{one['setup_seconds']:.1f}", f"{one['peak_mib']:.0f}"]
        lines.append(f"| {' | '.join(row)} |")
    more = ", ".join(f"{name} {rate / 1000:,.0f} k/s" for name, rate in marginal(results).items())
    return "\n".join(
        [*lines, "", f"Per CPU second of one core; {machine}. From the first row to the last: {more}.", ""]
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--captions", type=Path, required=True, help="one per line, or the last column of a .tsv; .gz too"
    )
    parser.add_argument("--quick", action="store_true", help="small pools, to check that it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # run by the child process
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return

    sizes = QUICK_SIZES if arguments.quick else SIZES
    captions, results = read_captions(arguments.captions), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    for size in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            store = Path(temporary)
            write_entries(store / "entries.txt", captions, QUICK_ENTRIES if arguments.quick else NUM_ENTRIES)
            run_stage(BuildMetadata(name="entries", path=str(store / "entries.txt")), store, lambda event: None)
            write_pool(store / "pool", captions, size, QUICK_SHARD_SIZE if arguments.quick else SHARD_SIZE)
            command = [sys.executable, __file__, "--captions", arguments.captions, "--measure", store]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    found = {"machine": machine, "results": results, "marginal_captions_per_second": marginal(results)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "pipeline.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "pipeline.md").write_text(table(results, machine))
    print(table(results, machine))


if __name__ == "__main__":
    main()
