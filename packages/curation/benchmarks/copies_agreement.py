"""Agreement of the pixels of damaged copies, and of shots of the same scene, from which its smallest value was chosen.

    python packages/curation/benchmarks/copies_agreement.py --pictures flickr8k-dev.tar flickr8k-train.tar

Compares 120 images with their copies, with the damages of the seeds 1, 2 and 7 (40 images each), and the
2,526 images that `copies_held_out.py` does not read with each other. Points of two of these agree only if they
show the same scene. Writes `copies_agreement.md` into `results/`, in a minute.
"""

from __future__ import annotations

import random
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from copies import pictures
from copies_held_out import NUM_DIFFERENT, content_of, parser_of
from random_damages import DAMAGES

from vfm_curation.filters.copies.agreement import MIN_AGREEMENT, agreement
from vfm_curation.filters.copies.alignment import align
from vfm_curation.filters.copies.point_index import candidate_pairs
from vfm_curation.filters.copies.same_content import Content

SEEDS, NUM_DAMAGED = (1, 2, 7), 40
QUANTILES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.5)


def agreement_of(first: Content, second: Content) -> float | None:
    """Return the agreement of two images, None if their points do not agree."""
    alignment = align(first.points, second.points)
    return agreement(first.pixels, second.pixels, alignment.matrix) if alignment else None


def of_copies(tars: list[Path], number: int) -> list[float | None]:
    """Return the agreement of each damaged copy with its image."""
    images = list(islice(pictures(tars), number * len(SEEDS)))
    contents, found = list(map(content_of, images)), []
    for place, seed in enumerate(SEEDS):
        chosen = range(place * number, (place + 1) * number)
        for name, damage in DAMAGES.items():
            draw = random.Random(f"{seed} {name}")
            found += [agreement_of(contents[i], content_of(damage(images[i], draw))) for i in chosen]
    return found


def of_shots(tars: list[Path], start: int, stop: int | None) -> tuple[int, list[tuple[int, int, float]]]:
    """Return the number of images from a place on, and the pairs whose points agree, with their agreement."""
    contents = [content_of(image) for image in islice(pictures(tars), start, stop)]
    stored = pa.chunked_array([[content.points.tobytes() for content in contents]])
    with tempfile.TemporaryDirectory() as folder:
        pairs = candidate_pairs([(np.arange(len(contents)), stored)], len(contents), Path(folder)).tolist()
    agreements = [(i, j, agreement_of(contents[i], contents[j])) for i, j in pairs]
    return len(contents), [(start + i, start + j, one) for i, j, one in agreements if one is not None]


def main() -> None:
    """Write the table."""
    chosen = parser_of("copies_agreement.md").parse_args()
    copies = of_copies(chosen.pictures, 4 if chosen.quick else NUM_DAMAGED)
    number, shots = of_shots(chosen.pictures, NUM_DIFFERENT, NUM_DIFFERENT + 30 if chosen.quick else None)
    known = np.array([one for one in copies if one is not None])
    lines = [
        f"Points of {len(known):,} of {len(copies):,} damaged copies and their images agree. Of these,"
        f" {(known < MIN_AGREEMENT).sum()} agree by less than {MIN_AGREEMENT} in their pixels.",
        "",
        f"| share of copies, % | {' | '.join(f'{100 * one:g}' for one in QUANTILES)} |",
        "|---|" + "--:|" * len(QUANTILES),
        f"| agree by at most | {' | '.join(f'{one:.2f}' for one in np.quantile(known, QUANTILES))} |",
        "",
        f"Pairs of {number:,} further images whose points agree, all shots of the same scene:",
        "",
        "| first | second | agreement |",
        "|--:|--:|--:|",
        *(f"| {first} | {second} | {one:.2f} |" for first, second, one in shots),
    ]
    chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
