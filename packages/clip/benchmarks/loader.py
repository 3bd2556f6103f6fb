"""Compare the loader alone with open_clip's webdataset pipeline: python packages/clip/benchmarks/loader.py

Both read the same tar, decode each JPEG, resize a random crop of 0.9 to 1 of its area to the model's size (bicubic),
and tokenise the caption, all in one process. They run alternately, round after round. Seconds are process times.
open_clip's samples are normalised in fp32, while vfm's are uint8 and normalised on the device. One row includes that.
The largest difference of a pixel is reported too. It takes two minutes, with `--quick` seconds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from bench import in_turn, machine, made_pairs, options, photograph, pool_of, ratio, write
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset
from PIL import Image

from vfm.data import ImageTransform, TrainingData, open_dataset
from vfm.models import Preprocess, WordTokenizer
from vfm_clip.data import MakePair

CASES = {"128-px JPEG to 112": (128, 112), "500-px JPEG to 224": (500, 224)}  # side of the file, side of the input
BATCH = 64


def peer_data(tar: Path, size: int, batch_size: int, model: str = "ViT-B-32") -> Any:
    """Build open_clip's endless training data, read in this process."""
    args = argparse.Namespace(
        train_data=str(tar),
        train_num_samples=1_000_000,
        train_data_upsampling_factors=None,
        dataset_resampled=True,
        batch_size=batch_size,
        workers=0,
        world_size=1,
        seed=0,
    )
    transform, tokenizer = image_transform(size, is_train=True), open_clip.get_tokenizer(model)
    return get_wds_dataset(args, transform, True, tokenizer=tokenizer).dataloader


def pixels_apart(side: int, size: int) -> float:
    """Compute the largest normalised pixel difference between both for a crop of the whole image."""
    data, facts = photograph(0, side), Preprocess(image_size=size)
    ours = facts.pixels(ImageTransform(size, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))(data, 0)[None])[0]
    peer = image_transform(size, is_train=True, aug_cfg={"scale": (1.0, 1.0)})
    crop = peer.transforms[0]
    crop.ratio = (4 / 3, 4 / 3)
    return float((ours - peer(Image.open(io.BytesIO(data)).convert("RGB"))).abs().max())


def measure(folder: Path, side: int, size: int, *, quick: bool) -> dict[str, float]:
    """Measure the milliseconds of process time per sample."""
    num_samples, batches, rounds = (128, 1, 1) if quick else (2048, 4, 7)
    tar = made_pairs(folder / "tars", num_samples, side)
    make = MakePair(
        ImageTransform(size, scale=(0.9, 1.0)), WordTokenizer(open_clip.get_tokenizer("ViT-B-32")), {"en": 1.0}
    )
    data = TrainingData(open_dataset(pool_of(tar, folder / "pool")), make, global_batch_size=BATCH)
    peer, facts = iter(peer_data(tar, size, BATCH)), Preprocess(image_size=size)
    numbers = itertools.count(0, batches)

    def ours(*, normalised: bool = False) -> None:
        start = next(numbers)
        for (batch,) in data.steps(start, start + batches):
            if normalised:
                facts.pixels(batch.inputs.images)

    def theirs() -> None:
        for _ in range(batches):
            next(peer)

    rows = {"open_clip": theirs, "vfm": ours, "vfm, normalised here": lambda: ours(normalised=True)}
    seconds = in_turn(rows, rounds)
    each = {name: 1e3 * statistics.median(s["cpu"]) / (batches * BATCH) for name, s in seconds.items()}
    peers = seconds["open_clip"]["cpu"]
    return {
        **{f"{name}, ms": value for name, value in each.items()},
        "open_clip / vfm": ratio(peers, seconds["vfm"]["cpu"]),
        "open_clip / vfm, normalised here": ratio(peers, seconds["vfm, normalised here"]["cpu"]),
        "largest difference of a pixel": pixels_apart(side, size),
    }


def main() -> None:
    """Run the command."""
    chosen = options(__doc__).parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        found = {
            name: measure(Path(folder) / str(sides[0]), *sides, quick=chosen.quick) for name, sides in CASES.items()
        }
    columns = list(next(iter(found.values())))
    lines = ["| a sample | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |" for name, row in found.items()]
    write(chosen.out, "loader", {"machine": machine(), **found}, "\n".join([*lines, "", machine()]))


if __name__ == "__main__":
    main()
