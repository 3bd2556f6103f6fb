"""DataComp's baselines that need no model, by conditions over its metadata's columns, beside its public code.

    python packages/curation/benchmarks/datacomp_baselines.py --captions captions_en.tsv.gz --datacomp CHECKOUT

Writes a table in the layout of DataComp's metadata with captions of the given file and random scores and sizes. Each
baseline then runs by `curation.filter`, until its subset is on disk, and by the functions of
`baselines/apply_filter.py` in a checkout of github.com/mlfoundations/datacomp, until the uids are in memory, one after
the other in one process. The uids must be equal. The basic filter is compared without its language model, which every
caption passes in both. The floor is pyarrow alone: it reads the uids, the captions and the condition's columns, and
writes the kept uids. Writes `datacomp_baselines.md` into `results/`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pipeline import cpu_seconds
from pools import run_stage
from repeats import described, machine, read_captions, spread

from vfm.data import read_subset_shard
from vfm.data.pairs.stages import Pairs
from vfm.plugin import CuratedSubset
from vfm_curation.export.export import shards_of
from vfm_curation.filters.stages import FilterPool
from vfm_curation.filters.where.expression import Expression
from vfm_curation.runtime import CurationRuntime
from vfm_curation.uids import UID_DTYPE, uid_halves

ROWS, ROWS_A_FILE, NUM_RUNS = 1_000_000, 250_000, 5
ASPECT = "max(original_width, original_height) / min(original_width, original_height) <= 3"
BASELINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CLIP score (L/14, 30 %)": (
        "top(clip_l14_similarity_score, 0.3)",
        "load_uids_with_clip_score",
        {"arch": "l14", "threshold": None, "fraction": 0.3},
    ),
    "CLIP score (B/32, 0.28)": (
        "clip_b32_similarity_score >= 0.28",
        "load_uids_with_clip_score",
        {"arch": "b32", "threshold": 0.28, "fraction": None},
    ),
    "basic filter": (
        f"words > 2 & characters > 5 & min(original_width, original_height) >= 200 & {ASPECT}",
        "load_uids_with_basic_filter",
        {},
    ),
}
Uids = NDArray[np.void]
T = TypeVar("T")


def write_metadata(folder: Path, captions: list[str], rows: int) -> None:
    """Write tables with the columns of DataComp's metadata."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, ROWS_A_FILE)):
        count = min(ROWS_A_FILE, rows - start)
        halves = rng.integers(0, 2**63, (count, 2), dtype=np.uint64)
        columns = {
            "uid": [f"{high:016x}{low:016x}" for high, low in halves.tolist()],
            "url": [f"http://x.org/{start + row}.jpg" for row in range(count)],
            "text": [captions[row] for row in rng.integers(0, len(captions), count)],
            "original_width": rng.integers(50, 2000, count),
            "original_height": rng.integers(50, 2000, count),
            "clip_b32_similarity_score": rng.normal(0.24, 0.05, count).astype(np.float32),
            "clip_l14_similarity_score": rng.normal(0.2, 0.05, count).astype(np.float32).round(4),
        }
        pq.write_table(pa.table(columns), folder / f"{number:04d}.parquet")


def load_theirs(checkout: Path) -> ModuleType:
    """Import DataComp's code. Its language models are replaced by one that says English."""
    fasttext, others = MagicMock(), ("gcld3", "nltk", "nltk.corpus")
    fasttext.load_model = lambda path: SimpleNamespace(predict=lambda text: (["__label__en"], [1.0]))
    sys.modules |= {"fasttext": fasttext, **{name: MagicMock() for name in others}}
    sys.path.insert(0, str(checkout))
    from baselines import apply_filter  # type: ignore[import-not-found]

    apply_filter.download = lambda *names: ""
    return apply_filter


def by_ours(keep: str, pool: Path, store: Path) -> CuratedSubset:
    """Filter by `curation.filter`."""
    filters = [{"type": "where", "keep": keep}]
    stage = FilterPool(name="kept", pool="p", filters=filters, runtime=CurationRuntime(workers=1))
    subset: CuratedSubset = run_stage(stage, store, p=pool)
    return subset


def uids_of(subset: CuratedSubset) -> Uids:
    """Read the uids of a subset."""
    tables = (read_subset_shard(subset.path, shard, ["uid"], unpack_uids=False) for shard in shards_of(subset))
    return np.concatenate([uid_halves(table["uid"]) for table in tables])


def read_columns(keep: str, folder: Path, kept: Uids) -> None:
    """Read the columns that a condition needs, and write the uids that it keeps, without evaluating it."""
    names = Expression(keep).names - {"words", "characters"}
    for file in sorted((folder / "metadata").iterdir()):
        pq.read_table(file, columns=["uid", "text", *names])
    np.save(folder / "uids.npy", kept)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Return a result and the CPU seconds that it took, in this process and its children."""
    begun = cpu_seconds()
    result = function()
    return result, cpu_seconds() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--datacomp", type=Path, required=True, help="checkout of github.com/mlfoundations/datacomp")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    where = machine("pandas")
    theirs = load_theirs(options.datacomp)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        write_metadata(store / "metadata", read_captions(options.captions), options.rows)
        table = str(store / "metadata/*.parquet")
        pool = run_stage(Pairs(name="pool", path=table, images=False, texts={"en": "text"}), store).path
        for place, (name, (keep, function, arguments)) in enumerate(BASELINES.items()):
            ours_rates, their_rates, floor_rates = [], [], []
            for number in range(NUM_RUNS):
                subset, seconds = timed(lambda: by_ours(keep, pool, store / f"run-{place}-{number}"))  # noqa: B023
                ours_rates.append(options.rows / seconds)
                load = getattr(theirs, function)
                uids, seconds = timed(lambda: load(str(store / "metadata"), num_workers=1, **arguments))  # noqa: B023
                their_rates.append(options.rows / seconds)
                ours = np.sort(uids_of(subset).astype(UID_DTYPE))
                uids = np.sort(uids.astype(UID_DTYPE))
                assert np.array_equal(ours, uids), f"{name}: {len(ours)} uids, expected {len(uids)}"
                _, seconds = timed(lambda: read_columns(keep, store, uids))  # noqa: B023
                floor_rates.append(options.rows / seconds)
            ratio = statistics.median(ours_rates) / statistics.median(their_rates)
            rates = " | ".join(spread(each, 1e6, 2) for each in (ours_rates, their_rates, floor_rates))
            rates = f"{rates} | {ratio:.1f}"
            lines.append(f"| {name} | `{keep}` | {len(ours):,} | {rates} |")
    page = [
        "# DataComp's baselines by conditions over columns",
        "",
        f"`packages/curation/benchmarks/datacomp_baselines.py`, {options.rows:,} rows: uids equal to DataComp's",
        f"code in each run. Million rows a CPU second, median of {NUM_RUNS} (smallest to largest). vfm: until the",
        f"subset and the verdicts are on disk. DataComp: until the uids are in memory. {described(where)}",
        "",
        "| baseline | condition | uids | vfm | DataComp | reading alone | vfm / DataComp |",
        "|---|---|--:|--:|--:|--:|--:|",
        *lines,
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "datacomp_baselines.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
