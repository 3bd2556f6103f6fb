"""What the clusters of `semantic_duplicates` cost in recall: pairs that k-means separates are not compared.

    python packages/curation/benchmarks/semantic_clusters.py --pictures flickr8k-dev.tar flickr8k-train.tar [--clip DIR]

Each photograph's vector gets a copy in a random direction at a given cosine; the table has the share of copies that
fall into the cluster of their original. The vectors are the embeddings of a ClipCheckpoint, or without one the grey
pixels, 24 x 24, less their mean. Writes `semantic_clusters.md` into `results/`; half a minute without a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from copies import pictures
from PIL import Image
from torch import Tensor

from vfm.models import load_clip
from vfm.plugin import ClipCheckpoint
from vfm_curation.filters.copies.clusters import nearest_centre, spherical_kmeans

CLUSTERS, COSINES = (4, 16, 64, 244), (0.99, 0.97, 0.95, 0.9)
SIDE = 24


def pixel_vectors(images: Sequence[Image.Image]) -> Tensor:
    """Return unit vectors of the grey pixels less the mean of all images, (N, SIDE * SIDE)."""
    grey = [np.asarray(image.convert("L").resize((SIDE, SIDE)), dtype=np.float32).ravel() for image in images]
    vectors = np.stack(grey) - np.mean(grey, axis=0)
    return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)


def copies_at(vectors: Tensor, cosine: float, seed: int) -> Tensor:
    """Return unit vectors at a cosine to the given ones, in random directions."""
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))
    noise -= (noise * vectors).sum(dim=1, keepdim=True) * vectors
    return cosine * vectors + (1 - cosine**2) ** 0.5 * torch.nn.functional.normalize(noise, dim=1)


def recall(vectors: Tensor, num_clusters: int, cosine: float) -> float:
    """Return the share of copies in the cluster of their original."""
    centres = spherical_kmeans(vectors, num_clusters, seed=0)
    same = nearest_centre(vectors, centres) == nearest_centre(copies_at(vectors, cosine, seed=1), centres)
    return float(same.float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="tars of photographs")
    parser.add_argument("--clip", type=Path, help="folder of a ClipCheckpoint; default: pixels")
    parser.add_argument("--clusters", type=int, nargs="+", default=CLUSTERS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args(arguments)
    if missing := [path for path in options.pictures if not path.is_file()]:
        print(f"nothing measured: {missing[0]} does not exist")
        return
    images = list(pictures(options.pictures))
    if options.clip:
        vectors = load_clip(ClipCheckpoint.load(options.clip)).encode_images(images, 64).float()
    else:
        vectors = pixel_vectors(images)
    lines = [f"| clusters | {' | '.join(f'cosine {cosine}' for cosine in COSINES)} |",
             "|---:|" + "---:|" * len(COSINES)]  # fmt: skip
    for number in options.clusters:
        found = [f"{100 * recall(vectors, number, cosine):.1f}" for cosine in COSINES]
        lines.append(f"| {number} | {' | '.join(found)} |")
    kind = "embeddings" if options.clip else "vectors of pixels"
    note = f"Copies in the cluster of their original, %, of {len(vectors):,} {kind} of width {vectors.shape[1]}."
    table = "\n".join([*lines, "", note, ""])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "semantic_clusters.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
