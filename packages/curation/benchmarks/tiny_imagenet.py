"""Write the tables of `metaclip_images` and of `mask_images`: Tiny ImageNet's images with captions like alt-texts.

    uv run --dev python packages/curation/benchmarks/tiny_imagenet.py TRAIN.parquet VAL.parquet CAPTIONS.tsv.gz FOLDER

TRAIN and VAL have the columns `image` (JPEG), `label` and `names` (WordNet's lemmas of the class, comma separated), and
CAPTIONS has lines `source<TAB>caption` about other images. FOLDER gets the images, and for each seed these tables of
`metaclip_images`:

- `tower-SEED.parquet`: the images of a random half of the classes, with captions, for the vision tower
- `val-SEED.parquet`: the validation images of the other half, with the first lemma of their class
- `large-SEED.parquet`, `small-SEED.parquet`: 2,048,000 pairs of the other half (`--pairs`), and the first tenth of them
- `clean-SEED.parquet`: the images of `small`, each with a caption of its class

In these pools, classes have a random rank, and their frequency falls as one over the rank. Images of a class are drawn
with replacement. In `large` and `small`, four of ten captions are from CAPTIONS and do not describe the image.

With `--claim mask_images` it writes these tables instead, without repetitions and with captions of the image's class:

- `pool-SEED.parquet`: 240 images of each of the 200 classes, with captions, for teachers and encoders
- `pairs-SEED.parquet`: the other 60 images of each of a random half of the classes, with captions, for the students
- `seen-SEED.parquet`: the validation images of that half, with the first lemma of their class
- `unseen_train-SEED.parquet`, `unseen_val-SEED.parquet`: the same images of the other half, with that lemma
"""

from __future__ import annotations

import argparse
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Integers = npt.NDArray[np.int64]

TEMPLATES = [
    "{}",
    "the {}",
    "a {}",
    "photo of a {}",
    "my {}",
    "{} for sale",
    "{} 2",
    "old {}",
    "picture of the {}",
    "a {} on a day in may",
]
NOISE_SHARE = 0.4
PAIRS_PER_CLASS = 60


@dataclass(frozen=True)
class Split:
    """The images of a split as files.

    Attributes:
        files: path of each image, relative to the folder of the tables.
        labels: class of each image.
        lemmas: names of each class.
    """

    files: list[str]
    labels: Integers
    lemmas: list[list[str]]


def read_split(table: Path, folder: Path) -> Split:
    """Read a table of Tiny ImageNet and write its images to a folder."""
    rows = pq.read_table(table, columns=["image", "label", "names"])
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, data in enumerate(rows["image"].to_pylist()):
        (folder / f"{number:05}.jpg").write_bytes(data)
        files.append(f"{folder.name}/{number:05}.jpg")
    labels = rows["label"].to_numpy().astype(np.int64)
    lemmas: list[list[str]] = [[] for _ in range(labels.max() + 1)]
    for label, names in zip(labels.tolist(), rows["names"].to_pylist(), strict=True):
        lemmas[label] = [name.strip() for name in names.split(",")]
    return Split(files, labels, lemmas)


def read_captions(file: Path) -> list[str]:
    """Read the captions that describe other images."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").partition("\t")[2] for line in lines]


def draw_captions(
    labels: Integers, lemmas: list[list[str]], noise: list[str], noise_share: float, generator: np.random.Generator
) -> list[str]:
    """Draw a caption for each image: a lemma of its class in a template, or a caption of another image."""
    is_noise = generator.random(len(labels)) < noise_share
    noise_rows = generator.integers(len(noise), size=len(labels))
    templates = generator.integers(len(TEMPLATES), size=len(labels))
    lemma_draws = generator.random(len(labels))
    captions = []
    for row, label in enumerate(labels.tolist()):
        if is_noise[row]:
            captions.append(noise[noise_rows[row]])
        else:
            names = lemmas[label]
            lemma = names[int(lemma_draws[row] * len(names))]
            captions.append(TEMPLATES[templates[row]].format(lemma))
    return captions


def draw_pools(
    generator: np.random.Generator, classes: Integers, num_pairs: int, train: Split, noise: list[str]
) -> dict[str, pa.Table]:
    """Draw three pools with a long tail of `classes`."""
    frequencies = 1 / np.arange(1, len(classes) + 1)
    labels = generator.choice(generator.permutation(classes), size=num_pairs, p=frequencies / frequencies.sum())
    images = np.empty(num_pairs, np.int64)
    for label in classes:
        rows = np.flatnonzero(labels == label)
        images[rows] = generator.choice(np.flatnonzero(train.labels == label), size=len(rows))
    captions = draw_captions(labels, train.lemmas, noise, NOISE_SHARE, generator)
    large = pa.table({"path": pa.array(train.files).take(pa.array(images)), "caption": captions})
    small = large.slice(0, num_pairs // 10)
    clean_captions = draw_captions(labels[: len(small)], train.lemmas, noise, 0, generator)
    return {"large": large, "small": small, "clean": small.set_column(1, "caption", pa.array(clean_captions))}


def pair_table(split: Split, rows: Integers, generator: np.random.Generator) -> pa.Table:
    """Draw a caption of its class for each of the images."""
    captions = draw_captions(split.labels[rows], split.lemmas, [""], 0, generator)
    return pa.table({"path": pa.array(split.files).take(pa.array(rows)), "caption": captions})


def labeled_table(split: Split, rows: Integers) -> pa.Table:
    """Name the class of each of the images by its first lemma."""
    names = [split.lemmas[label][0] for label in split.labels[rows].tolist()]
    return pa.table({"path": pa.array(split.files).take(pa.array(rows)), "name": names})


def draw_metaclip_images(seed: int, train: Split, val: Split, noise: list[str], num_pairs: int) -> dict[str, pa.Table]:
    """Draw the tables of a seed of `metaclip_images`, by name."""
    generator = np.random.default_rng(seed)
    tower, pool = np.split(generator.permutation(len(train.lemmas)), 2)
    tables = {"tower": pair_table(train, np.flatnonzero(np.isin(train.labels, tower)), generator)}
    tables["val"] = labeled_table(val, np.flatnonzero(np.isin(val.labels, pool)))
    return tables | draw_pools(generator, pool, num_pairs, train, noise)


def draw_mask_images(seed: int, train: Split, val: Split) -> dict[str, pa.Table]:
    """Draw the tables of a seed of `mask_images`, by name."""
    generator = np.random.default_rng(seed)
    seen = generator.permutation(len(train.lemmas))[: len(train.lemmas) // 2]
    is_pair = np.zeros(len(train.labels), bool)
    for label in range(len(train.lemmas)):
        of_class = generator.permutation(np.flatnonzero(train.labels == label))
        is_pair[of_class[:PAIRS_PER_CLASS]] = True
    is_seen = np.isin(train.labels, seen)
    val_is_seen = np.isin(val.labels, seen)
    return {
        "pool": pair_table(train, np.flatnonzero(~is_pair), generator),
        "pairs": pair_table(train, np.flatnonzero(is_pair & is_seen), generator),
        "seen": labeled_table(val, np.flatnonzero(val_is_seen)),
        "unseen_train": labeled_table(train, np.flatnonzero(is_pair & ~is_seen)),
        "unseen_val": labeled_table(val, np.flatnonzero(~val_is_seen)),
    }


def main(argv: list[str] | None = None) -> None:
    """Write the images, and the tables of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=2_048_000, help="pairs of `large`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--claim", choices=["metaclip_images", "mask_images"], default="metaclip_images")
    arguments = parser.parse_args(argv)
    train = read_split(arguments.train, arguments.folder / "train")
    val = read_split(arguments.val, arguments.folder / "val")
    noise = read_captions(arguments.captions)
    for seed in arguments.seeds:
        if arguments.claim == "mask_images":
            tables = draw_mask_images(seed, train, val)
        else:
            tables = draw_metaclip_images(seed, train, val, noise, arguments.pairs)
        for name, table in tables.items():
            pq.write_table(table, arguments.folder / f"{name}-{seed}.parquet", row_group_size=50_000)


if __name__ == "__main__":
    main()
