"""Remote tars from a server with latency: python packages/core/benchmarks/remote.py

A server on this machine answers each request after 50 ms. It has 10,000 tars of 100 pictures of 256 pixels with a
caption and a record (ten different ones, which repeat). Measured are: indexing all of them, without reading the
pictures; from there to the first batch; the rate of one worker, which reads every byte and decodes nothing; its memory,
also after each of ten epochs over the ten tars; and whether the batches are the same bits as from the disk. webdataset
reads the same tars one after the other, as it does, in one process. Seconds are those of a clock and of the processor;
the server shares the machine. `--shards 1000 --batches 8` takes a tenth of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.data.index.source import Source
from vfm.data.indexing.indexing import Indexing
from vfm.data.layouts.layout import find_layout
from vfm.data.loading.loader import TrainingData
from vfm.data.samples.sample import Sample
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tar.writer import write_tar
from vfm.interfaces import Context

SERVER = Path(__file__).parents[1] / "tests/range_server.py"
RESULT = Path(__file__).parent / "results/remote.json"
NUMBERS, MEMORY = itertools.count(), [0.0, 0.0]  # of this process' samples; its last count of memory
DIFFERENT, SAMPLES, SIDE, BATCH = 10, 100, 256, 256


@dataclass(frozen=True)
class Read:
    """What a worker made of a sample: a hash of its bytes, and the worker's own memory in MiB."""

    digest: Tensor
    private: Tensor
    resident: Tensor


def read(sample: Sample, draw: object) -> Read:
    """Return a hash of everything that was read."""
    content = repr((sample.key, sample.texts, hashlib.blake2b(sample.image).hexdigest())).encode()
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=7).digest())
    if next(NUMBERS) % 200 == 0:  # the system takes milliseconds to count pages
        MEMORY[:] = memory()
    private, resident = MEMORY
    return Read(torch.tensor(digest), torch.tensor(private), torch.tensor(resident))


def memory() -> tuple[float, float]:
    """Return this process' private and resident memory in MiB."""
    rows = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {row[0].rstrip(":"): int(row[1]) / 1024 for row in rows}
    return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"]


def make_tars(folder: Path, samples: int = SAMPLES) -> None:
    """Write the tars."""
    rng = np.random.default_rng(0)
    for shard in range(DIFFERENT):
        rows = []
        for number in range(samples):
            coarse = Image.fromarray(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            facts = json.dumps({"width": SIDE, "number": number}).encode()
            members = {"jpg": buffer.getvalue(), "txt": f"picture {number} of {shard}".encode(), "json": facts}
            rows.append((f"{shard:05d}{number:04d}", members))
        write_tar(folder / f"{shard:06d}.tar", rows)


@contextmanager
def server(folder: Path, latency: float, rate: float = 0.0) -> Iterator[str]:
    """Start the server, and yield its address."""
    command = [sys.executable, str(SERVER), str(folder), "--latency", str(latency), "--rate", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def used() -> tuple[float, float]:
    """Return seconds of the clock, and of the processor for this process and its finished children."""
    usage = [resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.monotonic(), sum(one.ru_utime + one.ru_stime for one in usage)


def since(begun: tuple[float, float]) -> dict[str, float]:
    """Return the seconds since."""
    return {name: round(now - then, 2) for name, now, then in zip(("clock", "cpu"), used(), begun, strict=True)}


def indexed(folder: Path, path: str, workers: int) -> Source:
    """Index tars without reading their samples."""
    folder.mkdir()
    layout = find_layout(path, "auto", None)
    spec = layout.with_defaults(DatasetSpec(), labels=False)
    indexing = Indexing(Context("pool", folder, folder, {}), spec, 0.0, path, verify=False, workers=workers)
    indexing.run(folder, layout.shards(folder, spec), layout.num_shards)
    return Source(folder)


def batches(source: Source, number: int, workers: int = 1) -> Iterator[Read]:
    """Yield what was read of each batch."""
    data = TrainingData(source, read, global_batch_size=BATCH, workers=workers)
    for (batch,) in data.steps(0, number):
        assert not batch.bad
        yield batch.inputs


def rate(source: Source, number: int) -> dict[str, Any]:
    """Return samples per second of one worker, after its first batch, and its memory."""
    begun = used()
    coming = batches(source, number + 1)
    next(coming)
    first, begun = since(begun), used()
    last = list(coming)[-1]
    seconds = since(begun)
    return {
        "first batch, s": first["clock"],
        "samples/s": round(number * BATCH / seconds["clock"], 1),
        "private MiB": round(last.private.max().item()),
        "resident MiB": round(last.resident.max().item()),
    }


def rate_here(source: Source, number: int) -> float:
    """Return samples per CPU second, read by a thread of this process."""
    begun = used()
    list(batches(source, number, workers=0))
    return round(number * BATCH / since(begun)["cpu"], 1)


def webdataset_rate(url: str, shards: int, number: int) -> dict[str, float] | str:
    """Return samples per second of webdataset, in this process."""
    try:
        import webdataset
    except ImportError:
        return "not installed"
    addresses = [f"{url}/{shard:06d}.tar" for shard in range(shards)]
    samples = iter(webdataset.WebDataset(addresses, shardshuffle=False))
    next(samples)
    begun = used()
    count = sum(len(sample["jpg"]) > 0 for sample in itertools.islice(samples, number * BATCH))
    seconds = since(begun)
    return {"samples/s": round(count / seconds["clock"], 1), "samples per CPU second": round(count / seconds["cpu"], 1)}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--batches", type=int, default=40, help=f"of {BATCH} samples, for the rates")
    parser.add_argument("--workers", type=int, default=2, help="processes that index")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tars").mkdir()
        make_tars(folder / "tars")
        size = (folder / "tars/000000.tar").stat().st_size
        with server(folder / "tars", chosen.latency) as url:
            begun = used()
            source = indexed(folder / "index", f"{url}/{{000000..{chosen.shards - 1:06d}}}.tar", chosen.workers)
            found: dict[str, Any] = {
                "shards": chosen.shards,
                "samples": len(source),
                "bytes of a tar": size,
                "latency, s": chosen.latency,
                "index, s": since(begun),
                "bytes of offsets a sample": round(
                    (folder / "index/offsets/packed.offsets").stat().st_size / len(source), 2
                ),
                "one worker": rate(source, chosen.batches),
                "samples per CPU second, in this process": rate_here(source, chosen.batches),
            }
            few = indexed(folder / "few", f"{url}/{{000000..{DIFFERENT - 1:06d}}}.tar", 0)
            near = indexed(folder / "near", str(folder / "tars"), 0)
            same = all(
                one.digest.equal(other.digest)
                for one, other in zip(batches(few, 8, 0), batches(near, 8, 0), strict=True)
            )
            found["same bits as from the disk"] = same
            steps = DIFFERENT * SAMPLES // BATCH + 1  # of an epoch, and a little more
            memories = [round(one.private.max().item(), 1) for one in batches(few, 10 * steps)]
            found["private MiB of a worker after each epoch"] = memories[steps - 1 :: steps]
            found["webdataset"] = webdataset_rate(url, chosen.shards, chosen.batches)
    found["machine"] = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.0f}"
    )
    print(json.dumps(found, indent=1))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
