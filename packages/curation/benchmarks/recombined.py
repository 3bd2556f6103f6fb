"""One curation from end to end over many texts: time, memory and disk of each step.

    python packages/curation/benchmarks/recombined.py --captions captions_en.tsv.gz --texts 100000000 --work DIR

Makes a pool of that many texts by recombining real captions, matches it against 500,000 entries and balances it, on all
cores. Writes `recombined.json` and `recombined.md` into `results/`, and removes what it made. A hundred million texts
need about 12 GB in `--work`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pools import run_stage, write_entries, write_pool
from process_usage import cpu_seconds
from repeats import described, machine, read_captions

from vfm.data import open_dataset
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.runtime import CurationRuntime

NUM_ENTRIES, SHARD_SIZE = 500_000, 100_000


class Steps:
    """Seconds, peak memory and disk of each step."""

    def __init__(self, store: Path) -> None:
        self.store, self.rows = store, list[dict[str, Any]]()

    @contextmanager
    def step(self, name: str, folder: str) -> Iterator[None]:
        """Measure a step that writes a folder of the store."""
        begun, cpu, stop, peak = time.monotonic(), cpu_seconds(), threading.Event(), [0.0]

        def watch() -> None:
            while not stop.wait(0.5):
                peak[0] = max(peak[0], memory_mib(os.getpid()))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield
        stop.set()
        watcher.join()
        files = [file for file in (self.store / folder).rglob("*") if file.is_file()]
        row = {"step": name, "seconds": time.monotonic() - begun, "cpu_seconds": cpu_seconds() - cpu,
               "peak_mib": max(peak[0], memory_mib(os.getpid())), "files": len(files),
               "megabytes": sum(file.stat().st_size for file in files) / 1e6}  # fmt: skip
        self.rows.append(row)
        print({key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()}, flush=True)


def memory_mib(process: int) -> float:
    """Return the memory of a process and its processes together, shared pages counted in each: an upper bound."""
    total = 0.0
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        total += int(status.partition("VmRSS:")[2].split()[0]) / 1024
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(memory_mib(int(child)) for child in (task / "children").read_text().split())
    except (OSError, IndexError):  # it has just ended
        pass
    return total


def markdown(rows: list[dict[str, Any]], facts: dict[str, Any], where: dict[str, object]) -> str:
    """Return the results in Markdown."""
    head = ["step", "seconds", "CPU seconds", "texts a second", "peak of all processes, MiB", "disk, MB", "files"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        rate = f"{facts['texts'] / row['seconds']:,.0f}" if row["seconds"] > 1 else ""
        values = [f"{row[name]:,.0f}" for name in ("seconds", "cpu_seconds")]
        sizes = [f"{row[name]:,.0f}" for name in ("peak_mib", "megabytes", "files")]
        lines.append(f"| {row['step']} | {' | '.join([*values, rate, *sizes])} |")
    curated = [row for row in rows if row["step"].startswith("pass")]
    seconds, cpu = (sum(row[name] for row in curated) for name in ("seconds", "cpu_seconds"))
    return "\n".join(
        [
            *lines,
            "",
            f"{facts['texts']:,} texts, {facts['matched']:,} matched, {facts['kept']:,} images kept,"
            f" t = {facts['t']:,}."
            f" Both passes: {facts['texts'] / seconds:,.0f} texts a second, {facts['texts'] / cpu:,.0f} a CPU second."
            f" {described(where)}",
            "",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--captions", type=Path, required=True, help="one per line, or the last column of a .tsv; .gz too"
    )
    parser.add_argument("--texts", type=int, required=True, help="texts of the pool")
    parser.add_argument("--work", type=Path, help="folder for what is made; default: the system's temporary folder")
    parser.add_argument("--entries", type=int, default=NUM_ENTRIES, help="number of entries")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="texts of a shard")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    where, captions, runtime = machine(), read_captions(options.captions), CurationRuntime()
    store = Path(tempfile.mkdtemp(dir=options.work))
    try:
        steps = Steps(store)
        with steps.step("making the pool", "pool"):
            write_pool(store / "pool", captions, options.texts, options.shard_size, runtime)
        with steps.step("entries", "entries"):
            write_entries(store / "entries.txt", captions, options.entries)
            run_stage(BuildMetadata(name="entries", path=str(store / "entries.txt")), store)
        with steps.step("pass 1: match, count", "matches"):
            stage = MatchTexts(name="matches", pool="p", metadata="m", runtime=runtime)
            matches = run_stage(stage, store, p=store / "pool", m=store / "entries")
        t = max(20, options.texts // 10_000)
        with steps.step("pass 2: balance, data card", "curated"):
            balance = MetaclipBalance(name="curated", matches="x", t=t, runtime=runtime)
            subset = run_stage(balance, store, x=matches.path)
        with steps.step("opening the subset", "curated"):
            assert len(open_dataset(subset)) == subset.num_samples
    finally:
        shutil.rmtree(store, ignore_errors=True)
    facts = {"texts": matches.num_texts, "matched": matches.num_matched, "kept": subset.num_samples, "t": t}
    options.out.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"machine": where, **facts, "steps": steps.rows}, indent=1)
    (options.out / "recombined.json").write_text(record + "\n", encoding="utf-8")
    table = markdown(steps.rows, facts, where)
    (options.out / "recombined.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
