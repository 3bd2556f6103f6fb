"""From a JPEG's bytes to a training crop: python packages/core/benchmarks/decoding.py [--pictures photographs.tar]

Each row decodes the same pictures and resizes a random crop of 0.9 to 1 of the area to 224 pixels, in turns, round
after round; milliseconds of the processor for a picture are the smallest of all rounds. `exact` is what Pillow (and
open_clip) gives; the differences to it are in levels of 255. With `--pictures`, the first 16 pictures of a tar are
measured beside made ones, whose amplitude falls as one over frequency.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.data.loading.transforms import ImageTransform
from vfm.data.samples import images

RESULT = Path(__file__).parent / "results/decoding.json"
SIZE, MADE = 224, {500: 8, 1000: 4}  # side of the crop; number of made pictures by their longer side
EXACT = ImageTransform(SIZE, scale=(0.9, 1.0))
SIMD = images.decode_jpeg


def photograph(seed: int, side: int) -> bytes:
    """Return a 4:3 JPEG with a photograph's spectrum."""
    rng, height = np.random.default_rng(seed), side * 3 // 4
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    waves = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    waves[1:] = 0.7 * waves[:1] + 0.3 * waves[1:]
    pixels = np.fft.irfft2(waves / frequency, (height, side)).transpose(1, 2, 0)
    pixels = np.clip(128 + 50 * (pixels - pixels.mean()) / pixels.std(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photographs(path: Path) -> list[bytes]:
    """Return the first JPEGs of a tar."""
    found: list[bytes] = []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith((".jpg", ".jpeg")) and len(found) < 16:
                file = tar.extractfile(member)
                assert file
                found.append(file.read())
    return found


def made(pictures: Sequence[bytes], pixels: str, simd: bool) -> list[Tensor]:
    """Return the crops of one row."""
    images.decode_jpeg = SIMD if simd else None
    transform = replace(EXACT, pixels=pixels)
    return [transform(data, seed) for seed, data in enumerate(pictures)]


def measured(pictures: Sequence[bytes], rounds: int) -> dict[str, dict[str, float]]:
    """Return a row for each way."""
    ways = {"exact": ("exact", False), "fast": ("fast", False)}
    if SIMD is not None:
        ways |= {"exact, simplejpeg": ("exact", True), "fast, simplejpeg": ("fast", True)}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            made(pictures, *way)
            best[name] = min(best[name], 1e3 * (time.process_time() - begun) / len(pictures))
    exact, rows = made(pictures, "exact", False), {}
    for name, way in ways.items():
        apart = torch.stack(
            [(a.int() - b.int()).abs() for a, b in zip(made(pictures, *way), exact, strict=True)]
        ).float()
        rows[name] = {
            "ms": round(best[name], 2),
            "exact / this": round(best["exact"] / best[name], 2),
            "pixels that differ, %": round(100 * float((apart > 0).float().mean()), 2),
            "mean difference": round(float(apart.mean()), 3),
            "largest difference": int(apart.max()),
        }
    return rows


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="tar with photographs")
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sets = {f"{side} px": [photograph(seed, side) for seed in range(count)] for side, count in MADE.items()}
    if chosen.pictures:
        sets["photographs"] = photographs(chosen.pictures)
    found = {}
    for name, pictures in sets.items():
        sides = [max(Image.open(io.BytesIO(data)).size) for data in pictures]
        facts = f"{name}, longer side {np.median(sides):.0f}, {np.mean([len(data) for data in pictures]) / 1e3:.0f} kB"
        found[facts] = measured(pictures, chosen.rounds)
        print(facts, json.dumps(found[facts], indent=1), flush=True)
    machine = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.0f}"
    RESULT.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
