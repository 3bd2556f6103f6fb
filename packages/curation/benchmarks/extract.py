"""Cost of merging the links of a crawl by files and buckets: python packages/curation/benchmarks/extract.py

Generated links (URLs of 60 characters, texts of 50, a third of them in other files too) as the first pass of
`curation.extract` writes them; then the second pass merges some buckets. CPU seconds of this process, on one core;
writes `extract.json` and `extract.md` into `results/`. Needs no crawl; about a minute, seconds with `--quick`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from vfm_curation.crawl.extract import LINKS, ExtractJob, in_buckets, merge_bucket
from vfm_curation.crawl.extract_links import Link
from vfm_curation.shard_files import write_batches

LINKS_A_FILE, QUICK_LINKS_A_FILE = 100_000, 1_000
CASES, QUICK_CASES = ((4, 16), (16, 16), (16, 256), (16, 1024)), ((2, 4), (4, 8))  # (files, buckets)
BUCKETS_MERGED = 16  # of each case; the others cost the same


def made_links(file: int, number: int) -> list[Link]:
    """Return the links of one file."""
    rng = random.Random(file)
    links = []
    for row in range(number):
        name = f"{row}" if row % 3 == 0 else f"{file}-{row}"
        text = " ".join(f"word{rng.randrange(50_000)}" for _ in range(6))
        links.append(Link(f"https://images.example.org/{name}/{'picture' * 4}.jpg", 0, text))
    return links


def measure(folder: Path, num_files: int, num_buckets: int, links_a_file: int) -> dict[str, float]:
    """Measure both passes without reading a crawl: writing sorted links, and merging some buckets of them."""
    job = ExtractJob(folder / "paths.txt", "", folder / "files", folder / "table", num_buckets, unescape=False)
    job.work.mkdir()
    job.folder.mkdir()
    job.paths.write_text("\n".join(f"{file}.warc.wat.gz" for file in range(num_files)))
    sorting = 0.0
    for file in range(num_files):
        links = made_links(file, links_a_file)
        begun = time.process_time()
        write_batches(job.links(file), in_buckets(links, num_buckets), LINKS, "made", {})
        sorting += time.process_time() - begun
    merged = range(min(BUCKETS_MERGED, num_buckets))
    begun = time.process_time()
    texts = sum(merge_bucket(job, number).num_texts for number in merged)
    seconds = time.process_time() - begun
    return {
        "files": num_files,
        "buckets": num_buckets,
        "sorted_links_per_second": num_files * links_a_file / sorting,
        "merged_texts_per_second": texts / seconds,
        "milliseconds_a_file_and_bucket": 1000 * seconds / len(merged) / num_files,
    }


def table(results: list[dict[str, float]], machine: str) -> str:
    """Return the results in Markdown."""
    lines = ["| files | buckets | sorting, k/s | merging, k/s | ms per file and bucket |", "|---:|---:|---:|---:|---:|"]
    for one in results:
        rates = [f"{one[name] / 1000:,.0f}" for name in ("sorted_links_per_second", "merged_texts_per_second")]
        row = [f"{one['files']}", f"{one['buckets']}", *rates, f"{one['milliseconds_a_file_and_bucket']:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", f"Links per CPU second of one core; {machine}.", ""])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few links, to check that it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    results = []
    for num_files, num_buckets in QUICK_CASES if arguments.quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            number = QUICK_LINKS_A_FILE if arguments.quick else LINKS_A_FILE
            results.append(measure(Path(folder), num_files, num_buckets, number))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "extract.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    (arguments.out / "extract.md").write_text(table(results, machine))
    print(table(results, machine))


if __name__ == "__main__":
    main()
