"""Recall and mistakes of the thorough filter at half and double of two of its bounds.

    python packages/curation/benchmarks/copies_bounds.py --pictures flickr8k-dev.tar flickr8k-train.tar

Damages and further images are those of `copies_agreement.py`, so that nothing is chosen on what `copies_held_out.py`
measures. `FEW_POINTS`: copies that are found, by hashes or by points, and pairs of further images that hashes join.
`MIN_SHARE`: pages in which the image counts as pasted, so that it is kept and they are not. Screenshots, collages and
photographs with the image on a large part should count, and not photographs with the image as a logo. `MIN_EDGE` is
measured on 120 further images, of which none chose it: screenshots and collages should count, and not originals whose
crops are in the pool too. Writes `copies_bounds.md` into `results/`, in three minutes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
from copies import hashes_of, pictures
from copies_agreement import NUM_DAMAGED, SEEDS
from copies_held_out import NUM_DIFFERENT, by_thorough_hashes, content_of, pairs_of, parser_of
from numpy.typing import NDArray
from PIL import Image
from random_damages import DAMAGES, crop_anywhere
from repeats import described, machine

from vfm_curation.filters.copies import pasted
from vfm_curation.filters.copies.agreement import MIN_AGREEMENT, agreement
from vfm_curation.filters.copies.alignment import align
from vfm_curation.filters.copies.point_index import FEW_POINTS
from vfm_curation.filters.copies.same_content import Content, aligned_copy

Integers = NDArray[np.int64]
PAGES = ("screenshot", "collage")
PASTED = {"pasted on 1 to 5 %": (0.01, 0.05), "pasted on 5 to 20 %": (0.05, 0.2)}  # of the area of another photograph


def pasted_on(other: Image.Image, image: Image.Image, shares: tuple[float, float], draw: random.Random) -> Image.Image:
    """Paste an image, scaled to a random share of the area, at a random place of another one."""
    page, side = other.copy(), draw.uniform(*shares) ** 0.5
    small = image.resize((round(side * page.width), round(side * page.height)))
    page.paste(small, (draw.randint(0, page.width - small.width), draw.randint(0, page.height - small.height)))
    return page


def two_photographs(image: Image.Image, others: Sequence[Image.Image], draw: random.Random) -> Image.Image:
    """Place an image and another one of the same height next to each other."""
    other = others[0].resize((max(1, round(others[0].width * image.height / others[0].height)), image.height))
    canvas = Image.new("RGB", (image.width + other.width, image.height))
    pair = draw.sample([image, other], 2)
    canvas.paste(pair[0], (0, 0))
    canvas.paste(pair[1], (pair[0].width, 0))
    return canvas


def four_photographs(image: Image.Image, others: Sequence[Image.Image], draw: random.Random) -> Image.Image:
    """Place an image and three other ones in a grid of two by two."""
    canvas = Image.new("RGB", (2 * image.width, 2 * image.height))
    for place, one in enumerate(draw.sample([image, *(other.resize(image.size) for other in others[:3])], 4)):
        canvas.paste(one, (place % 2 * image.width, place // 2 * image.height))
    return canvas


def part(image: Image.Image, draw: random.Random) -> Image.Image:
    """Cut 50 to 90 % of each side, anywhere or from a border."""
    width, height = (round(draw.uniform(0.5, 0.9) * side) for side in image.size)
    left, top = (draw.choice([0, rest, draw.randint(0, rest)]) for rest in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def half(image: Image.Image, draw: random.Random) -> Image.Image:
    """Cut the left or the upper half."""
    width, height = draw.choice([(image.width // 2, image.height), (image.width, image.height // 2)])
    return image.crop((0, 0, width, height))


def num_points(contents: Sequence[Content]) -> Integers:
    """Return the number of points of each image."""
    return np.array([len(content.points) for content in contents])


def is_page(image: Content, page: Content, name: str, bounds: Sequence[float]) -> list[bool] | None:
    """Return whether the image is pasted in the other one, by each bound. None: they have not the same content."""
    alignment = aligned_copy(image, page)
    if not alignment:
        return None
    found = []
    for bound in bounds:
        with patch.object(pasted, name, bound):
            found.append(pasted.is_pasted(image.pixels, page.pixels, alignment.matrix))
    return found


class Cost:
    """CPU seconds of comparing points and pixels, and how many pairs these were."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0]
        self.pairs = [0, 0]

    def same(self, first: Content, second: Content) -> bool:
        """Compare two images as `aligned_copy` does."""
        alignment = self._timed(0, lambda: align(first.points, second.points))
        if not alignment:
            return False
        return bool(self._timed(1, lambda: agreement(first.pixels, second.pixels, alignment.matrix)) >= MIN_AGREEMENT)

    def _timed(self, place: int, compare: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = compare()
        self.seconds[place] += time.process_time() - begun
        self.pairs[place] += 1
        return result

    def __str__(self) -> str:
        """Format the milliseconds a pair."""
        points, pixels = (1000 * spent / pairs for spent, pairs in zip(self.seconds, self.pairs, strict=True))
        return (
            f"The points of {self.pairs[0]:,} pairs take {points:.2f} CPU milliseconds a pair, and the pixels of the"
            f" {self.pairs[1]:,} whose points agree {pixels:.2f}."
        )


def found_copies(
    images: Sequence[Image.Image], contents: Sequence[Content], bounds: Sequence[int]
) -> tuple[Integers, Cost]:
    """Return how many copies there are, how many are found by each bound of few points, and the cost."""
    hashes, counts = hashes_of(images), num_points(contents)
    found = np.zeros(1 + len(bounds), np.int64)
    number = len(images) // len(SEEDS)
    Cost().same(contents[0], contents[0])  # compiles and loads
    cost = Cost()
    for place, seed in enumerate(SEEDS):
        here = slice(place * number, (place + 1) * number)
        for name, damage in DAMAGES.items():
            draw = random.Random(f"{seed} {name}")
            copies = [damage(image, draw) for image in images[here]]
            of_copies = list(map(content_of, copies))
            same = np.array([cost.same(*both) for both in zip(contents[here], of_copies, strict=True)])
            of_hashes, of_counts = hashes_of(copies), num_points(of_copies)
            found[0] += number
            for column, bound in enumerate(bounds, 1):
                few = counts[here] < bound, of_counts < bound
                found[column] += (same | by_thorough_hashes(hashes[here], of_hashes, *few)).sum()
    return found, cost


def joined(images: Sequence[Image.Image], bounds: Sequence[int]) -> list[tuple[int, int]]:
    """Return by each bound how many of different images have few points, and how many pairs of them hashes join."""
    hashes, counts = hashes_of(images), num_points(list(map(content_of, images)))
    found = []
    for bound in bounds:
        few = counts < bound
        rows = [(i, by_thorough_hashes(hashes[i], hashes[:i], few[i], few[:i])) for i in range(1, len(hashes))]
        found.append((int(few.sum()), len(pairs_of(rows))))
    return found


def pages(images: Sequence[Image.Image], contents: Sequence[Content], bounds: Sequence[float]) -> dict[str, Integers]:
    """Return by kind of page how many agree with their image, and how many are pages of it by each bound."""
    found = {name: np.zeros(1 + len(bounds), np.int64) for name in (*PAGES, *PASTED)}
    number = len(images) // len(SEEDS)
    for place, seed in enumerate(SEEDS):
        here = range(place * number, (place + 1) * number)
        for name, counts in found.items():
            draw = random.Random(f"{seed} {name}")
            for i in here:
                if name in PASTED:
                    page = pasted_on(images[here[(i + 1) % number]], images[i], PASTED[name], draw)
                else:
                    page = DAMAGES[name](images[i], draw)
                marks = is_page(contents[i], content_of(page), "MIN_SHARE", bounds)
                counts += [marks is not None, *(marks or [False] * len(bounds))]
    return found


def edges(images: Sequence[Image.Image], bounds: Sequence[float]) -> dict[str, Integers]:
    """Return by kind of pair how many agree, and in how many the first counts as pasted in the second by each bound."""
    found = {}
    contents = list(map(content_of, images))
    for name in (*PAGES, *COLLAGES, *PARTS):
        draw = random.Random(name)
        counts = np.zeros(1 + len(bounds), np.int64)
        for i, image in enumerate(images):
            if name in PARTS:
                first, second = content_of(PARTS[name](image, draw)), contents[i]
            else:
                others = [images[(i + step) % len(images)] for step in (1, 2, 3)]
                page = COLLAGES[name](image, others, draw) if name in COLLAGES else DAMAGES[name](image, draw)
                first, second = contents[i], content_of(page)
            marks = is_page(first, second, "MIN_EDGE", bounds)
            counts += [marks is not None, *(marks or [False] * len(bounds))]
        found[name] = counts
    return found


COLLAGES = {"two photographs": two_photographs, "four photographs": four_photographs}
PARTS = {"its crop of 5 to 20 %": crop_anywhere, "its part": part, "its half": half}


def table(name: str, bounds: Sequence[float], counts: Mapping[str, Integers]) -> list[str]:
    """Return a table with a row for each bound and a column for each kind of page."""
    return [
        f"| `{name}` | {' | '.join(f'{kind}, of {numbers[0]}' for kind, numbers in counts.items())} |",
        "|--:|" + "--:|" * len(counts),
        *(f"| {bounds[i]:g} | {' | '.join(str(numbers[1 + i]) for numbers in counts.values())} |" for i in range(3)),
    ]


def main() -> None:
    """Write the tables."""
    chosen = parser_of("copies_bounds.md").parse_args()
    where = machine("opencv-python-headless")
    images = list(islice(pictures(chosen.pictures), (4 if chosen.quick else NUM_DAMAGED) * len(SEEDS)))
    others = list(islice(pictures(chosen.pictures), NUM_DIFFERENT, NUM_DIFFERENT + 30 if chosen.quick else None))
    contents = list(map(content_of, images))
    few, shares = [FEW_POINTS // 2, FEW_POINTS, 2 * FEW_POINTS], [pasted.MIN_SHARE * scale for scale in (0.5, 1, 2)]
    sharp = [pasted.MIN_EDGE * scale for scale in (0.5, 1, 2)]
    copies, cost = found_copies(images, contents, few)
    wrong, by_kind = joined(others, few), pages(images, contents, shares)
    pairs = len(others) * (len(others) - 1) // 2
    lines = [
        f"| `FEW_POINTS` | copies found, of {copies[0]:,} | images with few points, of {len(others):,} |"
        f" pairs of them that hashes join, of {pairs:,} |",
        "|--:|--:|--:|--:|",
        *(f"| {few[i]} | {copies[1 + i]:,} | {wrong[i][0]:,} | {wrong[i][1]} |" for i in range(3)),
        "",
        *table("MIN_SHARE", shares, by_kind),
        "",
        "Pages whose points and pixels agree with the image, and those of them that count as pages by each bound.",
        "",
        *table("MIN_EDGE", sharp, edges(others[: len(images)], sharp)),
        "",
        f"The same for {len(images)} further images. In the last three columns, an image is compared with a part of it,"
        " and should not count as a page.",
        "",
        f"{cost} {described(where)}",
    ]
    chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
