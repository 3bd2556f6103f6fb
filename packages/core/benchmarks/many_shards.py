"""Simulate the start of a training on 10,000 streamed tars of 600 MB, on 8, 64 and 512 processes.

    python packages/core/benchmarks/many_shards.py [--page FILE]

Measured here, in seconds of the processor: a request for the size of a tar and a request of 1 MiB, to a server on this
machine, a sample from its bytes to the batch, opening the list of all tars, and opening the offsets of a tar. Counted
for the list of 10,000: bytes, the memory of a process that opened it, and the workers that read a tar. Computed from
these: the start on machines of 8 processes with one link each, whose requests are answered after a latency. Nothing is
decoded, and the server is as fast as all links. Seconds until the first batch begin when models are built and workers
have started.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec.implementations.http  # noqa: F401 (imported before the clock starts)
from remote import DIFFERENT, SIDE, make_tars, memory, server

from vfm.data import DatasetSpec, Shard, TarStream, write_index
from vfm.data.streaming import arriving
from vfm.data.streaming.lanes import FIRST_ROWS, ROWS, Lanes
from vfm.data.streaming.listing import shards_of
from vfm.storage.remote import CONNECTIONS, begin_span
from vfm.storage.remote_spans import Span

SHARDS, BYTES, SAMPLES = 10_000, 600e6, 10_000  # tars, and bytes and samples of each
LATENCY, LINK, PER_MACHINE, BATCH = 0.05, 1.25e9, 8, 256  # seconds; bytes a second; processes; samples of a micro-batch
CASES = [(8, 8), (64, 8), (512, 2), (512, 8)]  # processes, and workers of each
LISTED, READ = 1000, 200  # requests that are measured


@dataclass(frozen=True)
class Costs:
    """Measured costs in processor seconds and bytes."""

    size_request: float
    part_request: float
    sample: float
    open_list: float
    open_offsets: float
    list_bytes: int
    list_memory: float
    offsets_bytes: float  # of a sample


def seconds(work: Callable[[], object]) -> float:
    """Measure the seconds of this process' processor."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(root: Path) -> Costs:
    """Measure the costs on this machine."""
    (root / "tars").mkdir()
    make_tars(root / "tars", 1000)
    with server(root / "tars", 0.0) as url:
        urls = [f"{url}/{number:06d}.tar" for number in range(LISTED)]
        shards_of(urls[:1])  # connects
        size_request = seconds(lambda: shards_of(urls)) / LISTED
        spans = [Span(urls[number % DIFFERENT], number << 16, (number << 16) + arriving.PART) for number in range(READ)]
        part_request = seconds(lambda: [begin_span(span).result() for span in spans]) / READ
    spec = DatasetSpec(texts={"en": "txt"})
    write_index(root / "near", shards_of([str(file) for file in sorted((root / "tars").iterdir())]), spec)
    near = TarStream(root / "near", 1, BATCH)
    places = near.order(seed=0, shuffle_shards=1).of_epochs(0, DIFFERENT * 1000)
    sample = seconds(lambda: [near.sample(index, epoch) for epoch, index in places]) / len(places)
    offsets = list((root / "near/offsets").iterdir())
    sizes = [file.stat().st_size for file in offsets]
    open_offsets = seconds(lambda: [len(near.index.open(number)) for number in range(len(offsets))]) / len(offsets)
    far = [
        Shard(f"https://example.org/data/{number:06d}.tar", "tar", int(BYTES), number, 0) for number in range(SHARDS)
    ]
    write_index(root / "far", far, spec)
    before, _ = memory()
    opened = []
    open_list = seconds(lambda: opened.append(TarStream(root / "far", 64, BATCH)))
    opened[0].order(seed=0, shuffle_shards=1)(0, BATCH)  # with the permutation of an epoch
    after, _ = memory()
    list_bytes = sum(file.stat().st_size for file in (root / "far").iterdir())
    return Costs(
        size_request, part_request, sample, open_list, open_offsets, list_bytes, after - before,
        sum(sizes) / len(sizes) / 1000,
    )  # fmt: skip


def row(costs: Costs, processes: int, workers: int) -> str:
    """Simulate a case, and format its row of the table."""
    most = processes * workers
    lanes = Lanes(SHARDS, most, BATCH, 0)
    readers = lanes.readers(processes, workers, BATCH, 1)
    of_sample = BYTES / SAMPLES
    parts = math.ceil(FIRST_ROWS * of_sample / arriving.PART)  # of a tar, for the first block of a lane
    machines = max(1, processes // PER_MACHINE)
    # Over the link of a machine.
    first_bytes = lanes.group_size * parts * arriving.PART * workers * min(processes, PER_MACHINE)
    processor = costs.open_list + lanes.group_size * (parts * costs.part_request + FIRST_ROWS * costs.sample)
    first = 2 * LATENCY + first_bytes / LINK + processor  # the first part of a tar says how many more are needed
    again = SHARDS / 2 / most * costs.open_offsets + ROWS * lanes.group_size * of_sample * PER_MACHINE * workers / LINK
    requests = SHARDS * math.ceil(BYTES / arriving.PART) * readers
    minutes = SHARDS * BYTES * readers / machines / LINK / 60
    # The block that is given, the one before it, and the requested one.
    blocks = 3 * lanes.group_size * ROWS * of_sample
    held = costs.list_memory + blocks / 2**20
    return (
        f"| {processes} | {workers} | {lanes.number:,} | {lanes.group_size} | {readers:,} | {first:.1f} |"
        f" {first + again:.1f} | {requests / 1e6:,.1f} | {minutes:,.1f} | {held:,.0f} |"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="file for the table")
    chosen = parser.parse_args()
    with TemporaryDirectory() as name:
        costs = measure(Path(name))
    listing = max(SHARDS / CONNECTIONS * LATENCY, SHARDS * costs.size_request)
    lines = [
        f"Measured, processor: {1e3 * costs.size_request:.2f} ms for the size of a tar,"
        f" {1e3 * costs.part_request:.2f} ms for 1 MiB, {1e6 * costs.sample:.0f} µs for a sample (images of {SIDE}"
        f" pixels), {1e3 * costs.open_offsets:.2f} ms to open the offsets of a tar, {1e3 * costs.open_list:.0f} ms to"
        " open the list.",
        f"{SHARDS:,} tars are listed in {listing:.0f} s by {SHARDS:,} requests. The list has"
        f" {costs.list_bytes / 1e3:,.0f} kB and takes {costs.list_memory:.1f} MiB in each process, the order of an"
        f" epoch included. The offsets of an epoch have {costs.offsets_bytes * SHARDS * SAMPLES / 1e9:.1f} GB,"
        f" {costs.offsets_bytes:.1f} bytes a sample.",
        "",
        "| processes | workers of each | lanes | tars together | readers of a tar | first batch, s |"
        " the same within an epoch, s | requests an epoch, million | minutes an epoch at the rate of the links |"
        " MiB of a worker |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(row(costs, *case) for case in CASES),
    ]
    text = "\n".join(lines)
    print(text)
    if chosen.page:
        chosen.page.write_text(
            f"# 10,000 tars of 600 MB\n\n    python packages/core/benchmarks/many_shards.py\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
