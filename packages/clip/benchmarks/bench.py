"""Shared by the benchmarks: tars of synthetic images, clocks, and output of results."""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vfm.data import write_tar
from vfm.data.pairs.stages import Pairs
from vfm.plugin import Artifact, Context, Pool

RESULTS = Path(__file__).parent / "results"
WORDS = [
    "a",
    "the",
    "of",
    "on",
    "with",
    "red",
    "old",
    "small",
    "two",
    "man",
    "dog",
    "street",
    "water",
    "tree",
    "running",
    "white",
    "near",
    "green",
    "large",
    "sky",
]


def photograph(seed: int, side: int) -> bytes:
    """Draw a random 4:3 JPEG with the spectrum of natural images: the amplitude falls as one over frequency."""
    rng, height = np.random.default_rng(seed), side * 3 // 4
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    waves = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    waves[1:] = 0.7 * waves[:1] + 0.3 * waves[1:]  # colours are correlated
    pixels = np.fft.irfft2(waves / frequency, (height, side)).transpose(1, 2, 0)
    pixels = np.clip(128 + 50 * (pixels - pixels.mean()) / pixels.std(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def caption(seed: int) -> str:
    """Compose a caption of twelve words."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, 12))


def made_pairs(folder: Path, num_samples: int, side: int) -> Path:
    """Write a tar of synthetic images, each with a caption."""
    folder.mkdir(parents=True)
    rows = ((f"{n:06d}", {"jpg": photograph(n, side), "txt": caption(n).encode()}) for n in range(num_samples))
    write_tar(folder / "00000.tar", rows)
    return folder / "00000.tar"


def context(folder: Path, **inputs: Artifact) -> Context:
    """Create a stage's context with these artifacts as inputs."""
    (folder / "artifact").mkdir(parents=True)
    (folder / "work").mkdir()
    return Context("clip", folder / "artifact", folder / "work", {name: made.path for name, made in inputs.items()})


def pool_of(tar: Path, folder: Path) -> Pool:
    """Index a tar as a pool."""
    return Pairs.model_validate({"name": "pool", "path": str(tar)}).run(context(folder))


def in_turn(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure CPU and wall seconds of each contestant per round, run alternately.

    Other work on the machine then affects all equally. The first round is not counted.
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if number:
                seconds[name]["cpu"].append(time.process_time() - cpu)
                seconds[name]["wall"].append(time.perf_counter() - wall)
    return seconds


def ratio(slower: Iterable[float], faster: Iterable[float]) -> float:
    """Compute the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def machine() -> str:
    """Describe the machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return f"{device}, {torch.get_num_threads()} thread, torch {torch.__version__}"


def options(doc: str | None) -> argparse.ArgumentParser:
    """Create a parser with the shared options."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def write(out: Path, name: str, result: Any, table: str) -> None:
    """Write the result as JSON and as Markdown."""
    print(table)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(table + "\n", encoding="utf-8")
