"""Both passes of curation end to end from parquet: captions per second and core, and memory as the pool grows.

    python packages/curation/benchmarks/pipeline.py --captions captions_en.tsv.gz [--texts 2000000 20000000]

Makes pools of the given sizes, and one of 200,000 captions for the set-up, by recombining the given captions, and runs
`curation.match` and `curation.balance` over each five times, in processes of their own that take turns: once in one
process, once in two. Rates are of CPU seconds of all processes; the set-up, which is paid once (compiled code, matcher,
data card), is that of the small pool. Writes `pipeline.json` and `pipeline.md` into `results/`. Needs no model and no
network.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from pools import run_stage, write_entries, write_pool
from repeats import NUM_RUNS, described, machine, read_captions, spread

from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.balance.subset import balance_shard
from vfm_curation.counts.matches import COUNTS_FILE, matches_file, num_shards, read_matches
from vfm_curation.counts.probabilities import keep_probability
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.runtime import CurationRuntime

SMALL, TEXTS = 200_000, (2_000_000,)
QUICK_SMALL, QUICK_TEXTS = 2_000, (4_000,)
SHARD_SIZE, QUICK_SHARD_SIZE = 50_000, 1_000
NUM_ENTRIES, QUICK_ENTRIES = 500_000, 5_000
Run = dict[str, float]


def measure(store: Path, pool: Path, workers: int) -> Run:
    """Measure both passes over a pool with the entries of `store/entries`; this runs in a process of its own."""
    runtime = CurationRuntime(workers=workers)
    begun, cpu = time.monotonic(), cpu_seconds()
    stage = MatchTexts(name="matches", pool="p", metadata="m", runtime=runtime)
    matches = run_stage(stage, store, p=pool, m=store / "entries")
    cpu_middle = cpu_seconds()
    t = max(20, matches.num_texts // 10_000)
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=t, runtime=runtime), store, x=matches.path)
    end, cpu_end = time.monotonic(), cpu_seconds()
    probability = keep_probability(np.load(matches.path / COUNTS_FILE), t)
    shards = [read_matches(matches_file(matches.path, shard)) for shard in range(min(8, num_shards(matches.path)))]
    drawing = time.process_time()
    drawn = sum(len(balance_shard(shard, probability, 0).kept) for shard in shards)
    return {
        "captions": matches.num_texts,
        "matched": matches.num_matched,
        "kept_images": subset.num_samples,
        "match_cpu": cpu_middle - cpu,
        "balance_cpu": cpu_end - cpu_middle,
        "both_cpu": cpu_end - cpu,
        "both_wall": end - begun,
        "draws_per_cpu": drawn / (time.process_time() - drawing),
        "peak_mib": peak_mib(),
    }


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its processes that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mib() -> float:
    """Return the peak memory of this process or of the largest of its processes, whichever is larger."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def measure_apart(store: Path, pool: Path, workers: int) -> Run:
    """Call `measure` in a process of its own, with files that are removed afterwards."""
    with tempfile.TemporaryDirectory(dir=store) as made:
        (Path(made) / "entries").symlink_to(store / "entries")
        command = [sys.executable, __file__, "--measure", made, "--pool", pool, "--workers", str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: Run = json.loads(done.stdout)
    return found


def rates(small: Sequence[Run], large: Sequence[Run], what: str) -> list[float]:
    """Return captions per second of a large pool in each run, without the set-up, the median of the small pool's."""
    captions = large[0]["captions"] - small[0]["captions"]
    setup = statistics.median(run[what] for run in small)
    return [captions / max(1e-9, run[what] - setup) for run in large]


def markdown(small: Sequence[Run], large: Sequence[tuple[int, Sequence[Run]]], where: dict[str, object]) -> str:
    """Return the results in Markdown."""
    head = ["captions", "processes", "pass 1, k/s", "pass 2, k/s", "both, k/s", "both by the clock, k/s", "peak, MiB"]
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for workers, runs in large:
        of = [rates(small, runs, what) for what in ("match_cpu", "balance_cpu", "both_cpu")]
        clock = [run["captions"] / run["both_wall"] for run in runs]
        row = [f"{runs[0]['captions']:,}", str(workers), *(spread(one, 1000) for one in (*of, clock))]
        lines.append(f"| {' | '.join([*row, spread([run['peak_mib'] for run in runs])])} |")
    drawing = spread([run["draws_per_cpu"] for _, runs in large for run in runs], 1e6, 1)
    return "\n".join(
        [
            *lines,
            "",
            f"Thousands of captions a CPU second, all processes together, without the set-up of"
            f" {spread([run['both_cpu'] for run in small], digits=1)} s (the pool of {small[0]['captions']:,}); by the"
            f" clock with it. Medians of {len(small)} runs (smallest to largest). Drawing alone: {drawing} million"
            f" texts a CPU second. {described(where)}",
            "",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, help="one per line, or the last column of a .tsv; .gz too")
    parser.add_argument("--texts", type=int, nargs="+", help="sizes of the pools")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--runs", type=int, default=NUM_RUNS, help="how often each is measured")
    parser.add_argument("--quick", action="store_true", help="small pools and two runs, to check that it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    for name, kind in (("--measure", Path), ("--pool", Path), ("--workers", int)):  # for the process of a run
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.pool, options.workers)))
        return
    if not options.captions:
        parser.error("--captions is required")

    where, captions = machine(), read_captions(options.captions)
    texts = options.texts or (QUICK_TEXTS if options.quick else TEXTS)
    num_runs = 2 if options.quick else options.runs
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary)
        write_entries(store / "entries.txt", captions, QUICK_ENTRIES if options.quick else NUM_ENTRIES)
        run_stage(BuildMetadata(name="entries", path=str(store / "entries.txt")), store)
        shard_size = QUICK_SHARD_SIZE if options.quick else SHARD_SIZE
        sizes = [QUICK_SMALL if options.quick else SMALL, *texts]
        for size in sizes:
            write_pool(store / f"pool{size}", captions, size, shard_size)
        choices: list[Any] = [(sizes[0], 1), *product(texts, options.processes)]
        found: dict[Any, list[Run]] = {choice: [] for choice in choices}
        for _ in range(num_runs):  # in turns, so that other work of the machine disturbs all alike
            for size, workers in choices:
                found[size, workers].append(measure_apart(store, store / f"pool{size}", workers))
    small, *large = found.values()
    of_processes = [(workers, runs) for (_, workers), runs in zip(choices[1:], large, strict=True)]
    results = [{"processes": workers, "runs": runs} for workers, runs in [(1, small), *of_processes]]
    options.out.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"machine": where, "results": results}, indent=1)
    (options.out / "pipeline.json").write_text(record + "\n", encoding="utf-8")
    table = markdown(small, of_processes, where)
    (options.out / "pipeline.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
