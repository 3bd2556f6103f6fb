"""Speed of balancing, by part and end to end: python balancing.py

Generated matches: texts with 3.5 entries on average, as in the paper's pool, entries by Zipf's law, uids of 32
hexadecimal digits. One core; CPU seconds of this process.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
from repeats import NUM_RUNS, spread

from vfm.data import drawn, text_keys
from vfm_curation.balance.subset import BalanceJob, balance_shard, expected_size, write_balanced
from vfm_curation.counts.matches import FOLDER, matches_file, read_shards
from vfm_curation.counts.probabilities import count_ids, keep_probability, t_for_target_size, text_probability
from vfm_curation.engine import kept_workers, run_shards
from vfm_curation.runtime import CurationRuntime
from vfm_curation.shard_files import write_shard_file

NUM_TEXTS, NUM_ENTRIES, NUM_SHARDS, T = 1_000_000, 500_000, 10, 200


def make_matches(directory: Path) -> None:
    """Write files like those of `curation.match`."""
    rng = np.random.default_rng(0)
    (directory / FOLDER).mkdir()
    for shard in range(NUM_SHARDS):
        number = NUM_TEXTS // NUM_SHARDS
        lengths = 1 + rng.poisson(2.5, number)
        ids = (rng.zipf(1.2, lengths.sum()) % NUM_ENTRIES).astype(np.int32)
        table = {
            "shard": np.full(number, shard, np.int32), "row": np.arange(number, dtype=np.int32),
            "uid": [rng.bytes(16).hex() for _ in range(number)],
            "language": pa.repeat("en", number).dictionary_encode(), "text_index": np.zeros(number, np.int32),
            "key": rng.integers(0, 2**64, number, dtype=np.uint64),
            "ids": pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), ids),
        }  # fmt: skip
        write_shard_file(matches_file(directory, shard), pa.table(table), "generated", {})


def rate(name: str, run: Callable[[], object], num_texts: int = NUM_TEXTS) -> None:
    """Print the median rate of five runs with the smallest and largest, after one that compiles."""
    rates = []
    for number in range(1 + NUM_RUNS):
        begun = time.process_time()
        run()
        if number:
            rates.append(num_texts / (time.process_time() - begun))
    print(f"| {name} | {spread(rates, 1e6, 1)} |", flush=True)


def main() -> None:
    """Print the table."""
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        make_matches(directory)
        shards = list(read_shards(directory))
        counts = count_ids((shard.ids for shard in shards), NUM_ENTRIES)
        entry_probability = keep_probability(counts, T)
        shard, number = shards[0], NUM_TEXTS // NUM_SHARDS
        names = [shard.table[name] for name in ("uid", "language", "text_index")]
        chances, keys = text_probability(shard.ids, shard.offsets, entry_probability), text_keys(*names)
        print("| part | M texts / CPU second |\n|---|---|")
        rate("text_probability", lambda: text_probability(shard.ids, shard.offsets, entry_probability), number)
        rate("text_keys", lambda: text_keys(*names), number)
        rate("drawn", lambda: drawn(keys, chances, 0), number)
        rate("all three", lambda: [balance_shard(one, entry_probability, 0) for one in shards])
        runtime = CurationRuntime(workers=1)
        job = BalanceJob.of(directory, directory, entry_probability)
        for made in (job.files, job.kept_counts):
            made.mkdir()
        rate("expected_size from parquet", lambda: expected_size(job, runtime))

        def end_to_end() -> None:
            for file in job.files.iterdir():
                file.unlink()
            for _ in run_shards(write_balanced, job, range(NUM_SHARDS), runtime):
                pass

        rate("balancing from parquet to parquet", end_to_end)

        def solve(runtime: CurationRuntime = runtime) -> float:
            size = lambda t: expected_size(BalanceJob.of(directory, directory, keep_probability(counts, t)), runtime)  # noqa: E731
            return t_for_target_size(size, NUM_TEXTS // 4, counts)

        rate("solving t for a target size", solve)
        print("\n| solving t for a target size in | seconds |\n|---|--:|")
        for name, workers, kept in (
            ("one process", 1, False),
            ("two, started for each trial", 2, False),
            ("two, kept", 2, True),
        ):
            runtime = CurationRuntime(workers=workers)
            begun = time.perf_counter()
            with kept_workers(runtime) if kept else nullcontext():
                solve(runtime)
            print(f"| {name} | {time.perf_counter() - begun:.1f} |", flush=True)


if __name__ == "__main__":
    main()
