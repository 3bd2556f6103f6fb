"""Tables like Tiny ImageNet's, of eight classes of noise, and the script that draws the claims' tables from them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "packages" / "curation" / "benchmarks" / "tiny_imagenet.py"
NAMES = ["goldfish, Carassius auratus", "tractor", "orange", "teapot", "king penguin, Aptenodytes patagonica", "sock"]
NAMES += ["lemon", "umbrella"]


def write_tables(folder: Path, images_per_class: int, *arguments: str) -> Path:
    """Write the tables of seed 1 that the script draws with further arguments, and return their folder."""
    write_split(folder / "train.parquet", images_per_class, 0)
    write_split(folder / "val.parquet", 4, 1)
    with gzip.open(folder / "captions.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"source\tA dog of number {number} runs on the beach.\n" for number in range(50))
    inputs = [str(folder / name) for name in ("train.parquet", "val.parquet", "captions.tsv.gz", "tables")]
    subprocess.run([sys.executable, SCRIPT, *inputs, "--seeds", "1", *arguments], check=True)
    return folder / "tables"


def write_split(file: Path, images_per_class: int, seed: int) -> None:
    """Write images of noise with the columns of Tiny ImageNet."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(NAMES)), images_per_class)
    images = []
    for _ in labels:
        buffer = BytesIO()
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    names = pa.array(NAMES).take(pa.array(labels))
    pq.write_table(pa.table({"image": images, "label": labels.astype(np.int32), "names": names}), file)
