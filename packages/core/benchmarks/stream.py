"""Whole tars over a slow link, beside webdataset and curl.

    python packages/core/benchmarks/stream.py --webdataset PYTHON

A server on this machine answers each request after 50 ms, and sends so many bytes a second over all connections. It has
100 tars of 1,000 images of 256 pixels with a caption and a record (24 MB each; ten different ones, which repeat). Each
round reads the same number of tars by curl (as a file each, one after the other, and eight at a time), by webdataset in
its own environment, and by vfm, which has a list of the tars and no index. Nothing is decoded. First batch: seconds
until 256 samples are there, of a process whose libraries are imported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import fsspec.implementations.http  # noqa: F401 (imported before the clock starts, as webdataset is)
import torch
from remote import DIFFERENT, make_tars, server, since, used
from torch import Tensor

from vfm.data import DatasetSpec, Sample, TrainingData, write_index
from vfm.data.streaming.listing import shards_of
from vfm.data.streaming.source import TarStream

RESULT = Path(__file__).parent / "results/stream.json"
BATCH, SAMPLES = 256, 1000
WEBDATASET = """
import json, resource, sys, time, webdataset
def used():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.monotonic(), sum(each.ru_utime + each.ru_stime for each in usage)
begun, cpu = used()
count = 0
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False).shuffle(512, initial=100):
    count += len(sample["jpg"]) > 0 and len(sample["txt"]) > 0
    if count == 256:
        first = time.monotonic() - begun
end, all_cpu = used()
print(json.dumps({"samples": count, "first": first, "clock": end - begun, "cpu": all_cpu - cpu}))
"""


def size_of(sample: Sample, draw: object) -> Tensor:
    """Count the bytes of a sample."""
    return torch.tensor(len(sample.image) + sum(len(text) for text in sample.texts["en"]))


def by_vfm(folder: Path, urls: list[str]) -> dict[str, float]:
    """Train on every sample once, by lanes that one thread reads."""
    begun = used()
    write_index(folder, shards_of(urls), DatasetSpec(texts={"en": "txt"}))
    data = TrainingData(TarStream(folder, 8, BATCH), size_of, global_batch_size=BATCH)
    num_steps, first = len(urls) * SAMPLES // BATCH, 0.0
    for (batch,) in data.steps(0, num_steps):
        assert len(batch) == BATCH
        first = first or since(begun)["clock"]
    return {"samples": num_steps * BATCH, "first": first, **since(begun)}


def by_curl(urls: list[str], *options: str) -> dict[str, float]:
    """Load all tars by one process of curl."""
    begun = used()
    outputs = [part for url in urls for part in ("-o", "/dev/null", url)]
    subprocess.run(["curl", "-s", *options, *outputs], check=True)
    return {"samples": len(urls) * SAMPLES, **since(begun)}


def by_webdataset(python: str, urls: list[str]) -> dict[str, float]:
    """Read all samples in one process, which shuffles as many samples as a block of vfm has."""
    done = subprocess.run([python, "-c", WEBDATASET, *urls], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def described(rounds: list[dict[str, float]], bytes_of_sample: float) -> dict[str, Any]:
    """Summarise rounds by medians."""
    rates = [each["samples"] * bytes_of_sample / each["clock"] / 1e6 for each in rounds]
    summary = {
        "MB/s": round(median(rates), 1),
        "MB/s, each round": [round(rate, 1) for rate in rates],
        "MB per CPU second": round(median(each["samples"] * bytes_of_sample / each["cpu"] / 1e6 for each in rounds), 1),
    }
    if "first" in rounds[0]:
        summary["first batch, s"] = round(median(each["first"] for each in rounds), 2)
    return summary


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webdataset", required=True, help="python of an environment with webdataset")
    parser.add_argument("--tars", type=int, default=100)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second of the link")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tars").mkdir()
        make_tars(folder / "tars", SAMPLES)
        by_vfm(folder / "warm", [str(folder / "tars/000000.tar")])  # imports what reading needs
        size = sum(file.stat().st_size for file in (folder / "tars").iterdir()) / (DIFFERENT * SAMPLES)
        with server(folder / "tars", chosen.latency, chosen.rate) as url:
            urls = [f"{url}/{number:06d}.tar" for number in range(chosen.tars)]
            readers: dict[str, Callable[[int], dict[str, float]]] = {
                "curl, one after the other": lambda turn: by_curl(urls),
                "curl, eight at a time": lambda turn: by_curl(urls, "--parallel", "--parallel-max", "8"),
                "webdataset": lambda turn: by_webdataset(chosen.webdataset, urls),
                "vfm": lambda turn: by_vfm(folder / f"list-{turn}", urls),
            }
            rounds: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
            for turn in range(chosen.rounds):
                for reader, read in readers.items():
                    rounds[reader].append(read(turn))
                    print(turn, reader, rounds[reader][-1], flush=True)
    version = [chosen.webdataset, "-c", "import webdataset; print(webdataset.__version__)"]
    result = {
        "tars": chosen.tars,
        "bytes of a tar": round(size * SAMPLES),
        "latency, s": chosen.latency,
        "link, MB/s": chosen.rate / 1e6,
        **{reader: described(each, size) for reader, each in rounds.items()},
        "webdataset's version": subprocess.run(version, check=True, capture_output=True, text=True).stdout.strip(),
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}",
        "command": " ".join(["python", "packages/core/benchmarks/stream.py", *sys.argv[3:]]),
    }
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
