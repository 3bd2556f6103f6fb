"""Recall of the filter of near duplicates on damages drawn at random, and pairs of different images that it confuses.

    python packages/curation/benchmarks/copies_held_out.py --pictures flickr8k-dev.tar flickr8k-train.tar

The first 300 of 4,473 photographs (10,001,628 pairs) are damaged in thirteen ways, whose place, size and strength are
drawn for each image: crops of 5 to 20 % of the area anywhere, rotations of 1 to 5 degrees, texts, logos, bars and
borders anywhere, mirrored copies with a border, another aspect, screenshots, collages, and combinations of two. The
bounds and the variants of the filter were chosen on the damages of seeds 1, 2 and 7. The table is of seeds 4 and 5. The
fast filter compares hashes. The thorough one also compares local features, searched among the photographs and all
copies, and pixels. Peers: PDQ of the eight orientations (31 bits of 256), and imagehash's perceptual hash (10 bits of
64, imagededup's default). Writes `copies_held_out.md` into `results/`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import imagehash
import numpy as np
import pdqhash
import pyarrow as pa
from copies import Hashes, distance, hashes_of, pictures
from numpy.typing import NDArray
from PIL import Image
from random_damages import DAMAGES

from vfm_curation.filters.copies.point_index import FEW_POINTS, candidate_pairs
from vfm_curation.filters.copies.same_content import Content, aligned_copy
from vfm_curation.filters.local_points import pixels_of, points_of, thumbnail_of

NUM_DAMAGED, NUM_DIFFERENT, SEEDS = 300, 4473, (4, 5)
BITS, PDQ_BITS, PEER_BITS = 6, 31, 10
Bools = NDArray[np.bool_]
Pairs = set[tuple[int, int]]


def content_of(image: Image.Image) -> Content:
    """Return what the thorough filter keeps of an image."""
    return Content(points_of(image), pixels_of(thumbnail_of(image)))


def thorough_pairs(contents: Sequence[Content]) -> Pairs:
    """Return the pairs of images with the same content by their points and pixels, and print the cost."""
    begun = time.process_time()
    stored = pa.chunked_array([[content.points.tobytes() for content in contents]])
    with tempfile.TemporaryDirectory() as folder:
        images = [(np.arange(len(contents)), stored)]
        candidates = candidate_pairs(images, len(contents), Path(folder)).tolist()
    searched = time.process_time()
    same = {(first, second) for first, second in candidates if aligned_copy(contents[first], contents[second])}
    print(
        f"{len(contents)} images: {len(candidates)} candidates in {searched - begun:.1f} s, {len(same)} verified in"
        f" {time.process_time() - searched:.1f} s",
        flush=True,
    )
    return same


def pdq_of(images: Sequence[Image.Image]) -> Hashes:
    """Return PDQ of the eight orientations, (N, 8, 4)."""
    hashes = [pdqhash.compute_dihedral(np.asarray(image))[0] for image in images]
    return np.packbits(np.array(hashes, dtype=np.uint8), axis=-1).view(np.uint64)


def imagehash_of(images: Sequence[Image.Image]) -> Hashes:
    """Return the perceptual hash of imagehash, (N, 1, 1)."""
    bits = [imagehash.phash(image).hash.ravel() for image in images]
    return np.packbits(np.array(bits), axis=-1).view(np.uint64)[:, None]


def nearest_orientation(one: Hashes, other: Hashes) -> NDArray[np.int64]:
    """Return the distance of each image to the nearest orientation of the other."""
    return np.bitwise_count(one[..., :1, :] ^ other).sum(axis=-1).min(axis=-1).astype(np.int64)


def joined_by_hashes(hashes: Hashes) -> Pairs:
    """Return the pairs of photographs that the fast filter joins."""
    rows = [(i, distance(hashes[i], hashes[:i], variants=True) <= BITS) for i in range(1, len(hashes))]
    return pairs_of(rows)


def pairs_of(rows: Iterable[tuple[int, Bools]]) -> Pairs:
    """Return the pairs in rows of a matrix."""
    return {(int(j), i) for i, near in rows for j in np.flatnonzero(near)}


def by_thorough_hashes(one: Hashes, other: Hashes, one_is_few: Bools, other_is_few: Bools) -> Bools:
    """Return which pairs the thorough filter joins by hashes: variants count only for images with few points."""
    plain = distance(one, other, variants=False)
    forth = np.bitwise_count(one ^ other[..., :1]).min(axis=-1)
    back = np.bitwise_count(one[..., :1] ^ other).min(axis=-1)
    return (plain <= BITS) | (one_is_few & (forth <= BITS)) | (other_is_few & (back <= BITS))


def have_few(contents: Sequence[Content]) -> Bools:
    """Return which images have few points."""
    return np.array([len(content.points) < FEW_POINTS for content in contents])


def wrong_peers(hashes: Hashes, bits: int) -> int:
    """Count the pairs of different images that a peer confuses."""
    return sum(int((nearest_orientation(hashes[i], hashes[:i]) <= bits).sum()) for i in range(1, len(hashes)))


class Originals:
    """Photographs with their hashes and points, measured once, and the images a CPU second of each measure."""

    def __init__(self, images: Sequence[Image.Image], num_damaged: int) -> None:
        self.images = images[:num_damaged]
        self.rates: dict[str, float] = {}
        self.hashes = self._timed("fast", hashes_of, images)
        self.contents = self._timed("points", lambda some: list(map(content_of, some)), images)
        self.pdq = self._timed("pdq", pdq_of, images)
        self.imagehash = self._timed("imagehash", imagehash_of, images)

    def _timed(self, name, measure, images):  # type: ignore[no-untyped-def]
        measure(images[:1])  # compiles and loads
        begun = time.process_time()
        measured = measure(images)
        self.rates[name] = len(images) / (time.process_time() - begun)
        return measured


def recalls(originals: Originals, seed: int) -> tuple[dict[str, list[float]], int]:
    """Return the shares of copies that each method finds, by damage, and the number of pairs of photographs joined."""
    number, total = len(originals.images), len(originals.contents)
    contents, by_hash, by_thorough, peers = list(originals.contents), {}, {}, {}
    for name, damage in DAMAGES.items():
        draw = random.Random(f"{seed} {name}")
        copies = [damage(image, draw) for image in originals.images]
        of_copies = list(map(content_of, copies))
        contents += of_copies
        hashes, known = hashes_of(copies), originals.hashes[:number]
        by_hash[name] = distance(known, hashes, variants=True) <= BITS
        few = have_few(originals.contents[:number]), have_few(of_copies)
        by_thorough[name] = by_thorough_hashes(known, hashes, *few)
        pdq = nearest_orientation(pdq_of(copies), originals.pdq[:number]) <= PDQ_BITS
        peers[name] = [pdq, nearest_orientation(imagehash_of(copies), originals.imagehash[:number]) <= PEER_BITS]
    same = thorough_pairs(contents)
    shares = {}
    for place, name in enumerate(DAMAGES):
        by_points = np.array([(i, total + place * number + i) in same for i in range(number)])
        methods = [by_hash[name], by_points, by_thorough[name] | by_points, *peers[name]]
        shares[name] = [float(method.mean()) for method in methods]
    original = lambda image: image if image < total else (image - total) % number  # noqa: E731
    photographs = {tuple(sorted((original(first), original(second)))) for first, second in same}
    wrong = sorted(pair for pair in photographs if pair[0] != pair[1])
    print("different photographs, by points of them or of their copies:", wrong, flush=True)
    return shares, len(wrong)


def markdown(originals: Originals, seeds: Sequence[int], measured: Sequence[tuple[dict[str, list[float]], int]]) -> str:
    """Return the table."""
    number = len(originals.contents)
    head = ["fast, 6 bits", "points alone", "**thorough**", "PDQ, 8 orientations, 31 bits", "imagehash, 10 bits"]
    lines = [
        f"Share of {len(originals.images)} damaged photographs that are found, %, with the seeds"
        f" {' / '.join(map(str, seeds))}.",
        "",
        f"| damage | {' | '.join(head)} |",
        "|---|" + "--:|" * len(head),
    ]
    shares = np.array([[found[name] for name in DAMAGES] for found, _ in measured])  # (seeds, damages, methods)
    for name, of_damage in zip([*DAMAGES, "**mean**"], [*shares.swapaxes(0, 1), shares.mean(axis=1)], strict=True):
        digits = 1 if name == "**mean**" else 0
        lines.append(
            f"| {name} | " + " | ".join(" / ".join(f"{100 * s:.{digits}f}" for s in m) for m in of_damage.T) + " |"
        )
    fast = joined_by_hashes(originals.hashes)
    few = have_few(originals.contents)
    hashes = originals.hashes
    in_thorough = pairs_of((i, by_thorough_hashes(hashes[i], hashes[:i], few[i], few[:i])) for i in range(1, number))
    points = thorough_pairs(originals.contents)
    print("different photographs, by hashes:", sorted(fast), "by points:", sorted(points), flush=True)
    peers = [wrong_peers(originals.pdq, PDQ_BITS), wrong_peers(originals.imagehash, PEER_BITS)]
    found = [len(fast), len(points), len(in_thorough | points), *peers]
    lines.append(f"| different photographs, of {number * (number - 1) // 2:,} pairs | {' | '.join(map(str, found))} |")
    rates = originals.rates
    both = 1 / (1 / rates["fast"] + 1 / rates["points"])
    speeds = [rates["fast"], rates["points"], both, rates["pdq"], rates["imagehash"]]
    lines.append("| images a CPU second, measured | " + " | ".join(f"{speed:.0f}" for speed in speeds) + " |")
    pool = number + len(DAMAGES) * len(originals.images)
    of_copies = " / ".join(str(wrong) for _, wrong in measured)
    lines += [
        "",
        f"Among all {pool * (pool - 1) // 2:,} pairs of the photographs and their copies, points join {of_copies}"
        " pairs of photographs.",
    ]
    return "\n".join(lines) + "\n"


def parser_of(table: str) -> argparse.ArgumentParser:
    """Return a parser of the options of the benchmarks of copies. They write their table into `results/`."""
    parser = argparse.ArgumentParser(description="Write the table.")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="tars with images, all different")
    parser.add_argument("--quick", action="store_true", help="few pictures, to check that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / table)
    return parser


def main() -> None:
    """Write the table."""
    parser = parser_of("copies_held_out.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds of the damages")
    chosen = parser.parse_args()
    num_damaged, num_different = (8, 30) if chosen.quick else (NUM_DAMAGED, NUM_DIFFERENT)
    originals = Originals(list(islice(pictures(chosen.pictures), num_different)), num_damaged)
    table = markdown(originals, chosen.seeds, [recalls(originals, seed) for seed in chosen.seeds])
    chosen.out.write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
