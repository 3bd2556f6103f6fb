"""Both passes of curation end to end from parquet: captions per second and core, and memory as the pool grows.

    python packages/curation/benchmarks/pipeline.py --captions captions_en.tsv.gz [--texts 2000000 20000000]

Makes pools of the given sizes, and one of 200,000 captions for the set-up, by recombining the given captions, and runs
`curation.match` and `curation.balance` over each five times, in processes of their own that take turns: once in one
process, once in two. Rates are of CPU seconds of all processes; the set-up, which is paid once (compiled code, matcher,
data card), is that of the small pool in as many processes. The model is a line through the small pool and the smallest
of the others; its error is that of the measured CPU seconds of larger pools. Writes `pipeline.json` and `pipeline.md`
into `results/`. Needs no model and no network.

200 million captions need 20 GB in `--work`, where pools and finished runs are kept: a command that is killed or called
with further sizes goes on with the next run.

    python packages/curation/benchmarks/pipeline.py --captions captions_en.tsv.gz --work DIR \\
        --texts 2000000 20000000 200000000 --runs 5 3 1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pools import run_stage, write_entries, write_pool
from process_usage import bytes_written, cpu_seconds, peak_mib, system_seconds
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
MEASURING = "measuring-"  # start of the name of a run's folder
Run = dict[str, float]


def measure(store: Path, pool: Path, workers: int) -> Run:
    """Measure both passes over a pool with the entries of `store/entries`; this runs in a process of its own."""
    runtime = CurationRuntime(workers=workers)
    begun, cpu, system, written = time.monotonic(), cpu_seconds(), system_seconds(), bytes_written()
    stage = MatchTexts(name="matches", pool="p", metadata="m", runtime=runtime)
    matches = run_stage(stage, store, p=pool, m=store / "entries")
    cpu_middle, written_middle = cpu_seconds(), bytes_written()
    t = max(20, matches.num_texts // 10_000)
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=t, runtime=runtime), store, x=matches.path)
    end, cpu_end, system_end, written_end = time.monotonic(), cpu_seconds(), system_seconds(), bytes_written()
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
        "system_cpu": system_end - system,
        "both_wall": end - begun,
        "match_bytes": written_middle - written,
        "balance_bytes": written_end - written_middle,
        "kept_bytes": sum(file.stat().st_size for made in (matches, subset) for file in files_of(made.path)),
        "draws_per_cpu": drawn / (time.process_time() - drawing),
        "peak_mib": peak_mib(),
        "load": os.getloadavg()[1],  # of five minutes
    }


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it."""
    return (file for file in folder.rglob("*") if file.is_file())


def measure_apart(store: Path, pool: Path, workers: int) -> Run:
    """Call `measure` in a process of its own, with files that are removed afterwards."""
    with tempfile.TemporaryDirectory(dir=store, prefix=MEASURING) as made:
        (Path(made) / "entries").symlink_to(store / "entries")
        command = [sys.executable, __file__, "--measure", made, "--pool", pool, "--workers", str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: Run = json.loads(done.stdout)
    return found


def run_file(store: Path, size: int, workers: int, number: int) -> Path:
    """Return the path of a finished run."""
    return store / "runs" / f"{size}-{workers}-{number}.json"


def measured_once(store: Path, size: int, workers: int, number: int) -> Run:
    """Return the run of that number, which is measured unless an earlier command did."""
    file = run_file(store, size, workers, number)
    if not file.exists():
        run = measure_apart(store, store / f"pool{size}", workers)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(run), encoding="utf-8")
        print(file.stem, run, flush=True)
    found: Run = json.loads(file.read_text(encoding="utf-8"))
    return found


@contextmanager
def working_folder(work: Path | None) -> Iterator[Path]:
    """Yield the given folder without the files of killed runs, or else a temporary one."""
    if not work:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    work.mkdir(parents=True, exist_ok=True)
    for left in work.glob(f"{MEASURING}*"):
        shutil.rmtree(left)
    yield work


@dataclass(frozen=True)
class Measured:
    """Hold the runs over a pool in a number of processes, and the runs over the small pool and the model's pool."""

    workers: int
    runs: Sequence[Run]
    small: Sequence[Run]
    model: Sequence[Run]

    @property
    def captions(self) -> int:
        """Number of captions of the pool."""
        return int(self.runs[0]["captions"])

    def rates(self, what: str) -> list[float]:
        """Return captions per second without the set-up in each run, or nothing if a run is as short as the set-up."""
        captions = self.captions - self.small[0]["captions"]
        seconds = [run[what] - median(self.small, what) for run in self.runs]
        # The slower runs alone would be a rate of fewer runs, which is too low.
        return [captions / each for each in seconds] if min(seconds) > 0 else []

    def model_cpu(self) -> float:
        """Return the CPU seconds of both passes on the line through the small pool and the model's."""
        begin, at = median(self.small, "both_cpu"), median(self.model, "both_cpu")
        sizes = [runs[0]["captions"] for runs in (self.small, self.model, self.runs)]
        return begin + (at - begin) * (sizes[2] - sizes[0]) / (sizes[1] - sizes[0])

    def row(self) -> list[str]:
        """Return the cells of the table."""
        cpu, model = median(self.runs, "both_cpu"), self.model_cpu()
        modelled = ["", ""] if self.runs is self.model else [f"{model:,.1f}", f"{cpu / model - 1:+.1%}"]
        rates = map(self.rates, ("match_cpu", "balance_cpu", "both_cpu"))
        clock = [run["captions"] / run["both_wall"] for run in self.runs]
        written = [median(self.runs, what) / 1e9 for what in ("match_bytes", "balance_bytes", "kept_bytes")]
        # Runs of earlier commands, which --work keeps, lack the seconds in system mode.
        system = f"{median(self.runs, 'system_cpu'):,.1f}" if all("system_cpu" in run for run in self.runs) else ""
        return [
            *(f"{self.captions:,}", str(self.workers), str(len(self.runs)), f"{cpu:,.1f}", system, *modelled),
            *(spread(each, 1000) if each else "" for each in rates),
            *(spread(clock, 1000), f"{max(run['peak_mib'] for run in self.runs):,.0f}"),
            *(" + ".join(f"{each:,.2f}" for each in written[:2]), f"{written[2]:,.2f}"),
            f"{median(self.runs, 'load'):.1f}",
        ]


def median(runs: Sequence[Run], what: str) -> float:
    """Return the median of a number of all runs."""
    return statistics.median(run[what] for run in runs)


HEAD = ["captions", "processes", "runs", "CPU s", "system, CPU s", "model, CPU s", "error", "pass 1, k/s",
        "pass 2, k/s", "both, k/s", "both by the clock, k/s", "peak, MiB", "written, GB", "kept, GB",
        "load"]  # fmt: skip


def markdown(measured: Sequence[Measured], where: dict[str, object]) -> str:
    """Return the results in Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---:|" * len(HEAD)]
    lines += [f"| {' | '.join(one.row())} |" for one in measured]
    drawing = spread([run["draws_per_cpu"] for one in measured for run in one.runs], 1e6, 1)
    smalls = {one.workers: one.small for one in measured}
    setup = ", ".join(
        f"{spread([run['both_cpu'] for run in runs], digits=1)} s with {workers}" for workers, runs in smalls.items()
    )
    return "\n".join(
        [
            *lines,
            "",
            f"CPU seconds are of all processes together, set-up included; system: those of them in system mode, such as"
            f" for reading and writing files. The model is the line through the small pool"
            f" ({measured[0].small[0]['captions']:,.0f} captions) and the first size. k/s: thousands of captions a CPU"
            f" second without the set-up, the small pool's ({setup}); by the clock with it. Medians"
            f" (smallest to largest). Peak: of the largest process. Written: by pass 1 + by pass 2, of which the"
            f" artifacts are kept. Drawing alone: {drawing} million texts a CPU second. {described(where)}",
            "",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, help="one per line, or the last column of a .tsv; .gz too")
    parser.add_argument("--texts", type=int, nargs="+", help="sizes of the pools")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--runs", type=int, nargs="+", default=[NUM_RUNS], help="runs, one number or one for each size")
    parser.add_argument(
        "--distinct", type=int, help="captions that are made; larger pools repeat their shards by hard links"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for pools and finished runs; default: temporary, then removed"
    )
    parser.add_argument("--finished", action="store_true", help="measure nothing: only the finished runs in --work")
    parser.add_argument("--quick", action="store_true", help="small pools and two runs, to check that it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="pipeline", help="name of the files of results")
    for name, kind in (("--measure", Path), ("--pool", Path), ("--workers", int)):  # for the process of a run
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.pool, options.workers)))
        return
    if not options.captions:
        parser.error("--captions is required")

    texts = options.texts or (QUICK_TEXTS if options.quick else TEXTS)
    num_runs = [2] if options.quick else options.runs
    if len(num_runs) not in {1, len(texts)}:
        parser.error(f"--runs: expected one number or {len(texts)}, as --texts, got {len(num_runs)}")
    runs_of = dict(zip(texts, num_runs * (len(texts) // len(num_runs)), strict=True))
    where, captions = machine(), read_captions(options.captions)
    with working_folder(options.work) as store:
        if not (store / "entries" / "artifact.json").exists():  # written last
            for left in ("entries", ".entries.work"):
                shutil.rmtree(store / left, ignore_errors=True)
            write_entries(store / "entries.txt", captions, QUICK_ENTRIES if options.quick else NUM_ENTRIES)
            run_stage(BuildMetadata(name="entries", path=str(store / "entries.txt")), store)
        shard_size = QUICK_SHARD_SIZE if options.quick else SHARD_SIZE
        small = QUICK_SMALL if options.quick else SMALL
        for size in (small, *texts):
            if not (store / f"pool{size}" / "artifact.json").exists():
                shutil.rmtree(store / f"pool{size}", ignore_errors=True)
                write_pool(store / f"pool{size}", captions, size, shard_size, distinct=options.distinct)
        where["distinct captions"] = min(max(texts), options.distinct or max(texts))
        found: dict[tuple[int, int], list[Run]] = defaultdict(list)
        for number in range(max(num_runs)):  # in turns, so that other work of the machine disturbs all alike
            for size in (small, *texts):
                for workers in options.processes if number < runs_of.get(size, max(num_runs)) else ():
                    if options.finished and not run_file(store, size, workers, number).exists():
                        continue
                    found[size, workers].append(measured_once(store, size, workers, number))
                    write_results(options.out / options.name, found, small, where)


def write_results(out: Path, found: Mapping[tuple[int, int], Sequence[Run]], small: int, where: Any) -> None:
    """Write the results of the runs so far as `out`.json and .md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    results = [{"processes": workers, "runs": runs} for (_, workers), runs in found.items()]
    record = json.dumps({"machine": where, "results": results}, indent=1)
    out.with_suffix(".json").write_text(record + "\n", encoding="utf-8")
    first = min((size for size, _ in found if size != small), default=None)
    measured = [
        Measured(workers, runs, found[small, workers], found[first, workers])
        for (size, workers), runs in found.items()
        if first is not None and size != small and (first, workers) in found
    ]
    if measured:
        table = markdown(measured, where)
        out.with_suffix(".md").write_text(table, encoding="utf-8")
        print(table, flush=True)


if __name__ == "__main__":
    main()
