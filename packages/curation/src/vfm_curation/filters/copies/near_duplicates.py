"""Drop images that look like another one, by perceptual hashes of an image and its variants, and by points.

Two images are near if the first image's hash, or a variant's, is within the distance of the second image's hash. Near
hashes agree on some choice of their blocks (see `block_masks`), so each hash is written once for each choice into
buckets on disk, in which rows that agree meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vfm.data import splitmix64
from vfm_curation.filters.copies.buckets import Buckets, num_buckets
from vfm_curation.filters.copies.duplicates import LARGEST_FIRST
from vfm_curation.filters.copies.point_index import have_few
from vfm_curation.filters.copies.same_content import panel_of_pairs, same_content
from vfm_curation.filters.hashes import NUM_VARIANTS, Hashes, block_masks
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.stages import NearDuplicates
from vfm_curation.simd import compiled, num_bits

Bools = NDArray[np.bool_]
MANY_ROWS = 1000  # rows for each image, above which the user is warned of the cost of the distance


def distinct_images(config: NearDuplicates, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask of images without a better near image.

    The better image has more pixels, then a larger file, then a smaller uid. An image in which another one is pasted,
    such as a collage, is worse than all images without.
    """
    ordered = _best_first(run)
    pairs = None
    if config.thorough:
        pairs, ordered = _pasted_last(_same_content(run, ordered), ordered)
        names = [ordered["uid"].take(pairs[name]).to_pylist() for name in ("first", "second")]
        run.details = panel_of_pairs("Copies of a better image", pairs, *names).model_dump(mode="json")
    ranks = np.empty(len(ordered), dtype=np.int64)
    ranks[ordered["index"].to_numpy()] = np.arange(len(ordered))
    dropped = _near_by_hash(config, run, ranks)
    if pairs is not None:
        dropped[pairs["second"].to_numpy()] = True
    start = 0
    for table in run.identities():
        yield ~dropped[ranks[start : start + len(table)]]
        start += len(table)


def _best_first(run: FilterRun) -> pa.Table:
    """Sort all images, the best first.

    The columns are uid, shard, unit, and `index`, the position in the order of shards.
    """
    columns = ["width", "height", "num_bytes", "uid", "shard", "unit"]
    tables = [table.select(columns) for table in run.images()]
    table = pa.concat_tables(tables)
    pixels = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
    index = pa.array(np.arange(len(table)))
    ordered = table.append_column("pixels", pa.array(pixels)).append_column("index", index).sort_by([*LARGEST_FIRST])
    return ordered.select(["uid", "shard", "unit", "index"])


def _near_by_hash(config: NearDuplicates, run: FilterRun, ranks: NDArray[np.int64]) -> Bools:
    """Mark the images whose hash is near to a better image's, by rank, (num_images,)."""
    hashed = 1 + NUM_VARIANTS * config.variants
    masks = block_masks(config.max_distance, hashed * len(ranks))
    if len(masks) * hashed > MANY_ROWS:
        run.ctx.warn(
            f"near_duplicates: with max_distance {config.max_distance} each of {len(ranks)} images is written and"
            f" sorted {hashed * len(masks)} times, with 4 and variants: false"
            f" {len(block_masks(4, len(ranks)))} times"
        )
    agreeing = Buckets(run.scratch / "agreeing", num_buckets(len(ranks) * hashed * len(masks)))
    start = 0
    for table in run.images():
        rank = ranks[start : start + len(table)]
        start += len(table)
        _add(agreeing, masks, table["phash"].to_numpy(), rank, plain=True)
        if config.variants:
            if config.thorough:  # points find the other images' variants, and confuse fewer images
                few = have_few(table["points"])
                table = table.filter(pa.array(few))
                rank = rank[few]
            _add(agreeing, masks, _flat(table["variants"]), np.repeat(rank, NUM_VARIANTS), plain=False)
    dropped = np.zeros(len(ranks), dtype=np.bool_)
    for table in agreeing:
        sorted_rows = table.sort_by([("group", "ascending"), ("rank", "ascending")])
        group = sorted_rows["group"].to_numpy()
        hashes = sorted_rows["hash"].to_numpy()
        rank = sorted_rows["rank"].to_numpy()
        plain = sorted_rows["plain"].to_numpy()
        dropped[rank[near_better(group, hashes, rank, plain, config.max_distance)]] = True
    return dropped


def _same_content(run: FilterRun, ordered: pa.Table) -> pa.Table:
    """Find the pairs of images that show the same content."""
    places = np.zeros((len(ordered), 3), np.int32)
    places[:, 1] = ordered["shard"].to_numpy()
    places[:, 2] = ordered["unit"].to_numpy()
    return same_content(run, (run.remaining.measured,), places)


def _pasted_last(pairs: pa.Table, ordered: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Move the images in which another one is pasted behind all others, and give the pairs the new ranks.

    One order for all pairs, hashes' too, keeps an image of each group of copies.

    Args:
        pairs: Pairs of ranks, as `same_content` finds them.
        ordered: The images by rank.

    Returns:
        The pairs, with the better image first, and the images by their new ranks.
    """
    first, second = (pairs[name].to_numpy() for name in ("first", "second"))
    is_page = np.zeros(len(ordered), np.bool_)
    is_page[first[pairs["first_has_second"].to_numpy(zero_copy_only=False)]] = True
    is_page[second[pairs["second_has_first"].to_numpy(zero_copy_only=False)]] = True
    order = np.argsort(is_page, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return _turned(pairs, ranks[first], ranks[second]), ordered.take(order)


def _turned(pairs: pa.Table, first: NDArray[np.int64], second: NDArray[np.int64]) -> pa.Table:
    """Give pairs new ranks. If the second image is now the better one, exchange both and the transformation."""
    exchanged = first > second
    # Mirrored, the way back rotates by the same angle.
    signs = np.where(exchanged & ~pairs["mirrored"].to_numpy(zero_copy_only=False), -1, 1)
    scale = pairs["scale"].to_numpy()
    columns = {
        "first": np.minimum(first, second),
        "second": np.maximum(first, second),
        "degrees": (signs * pairs["degrees"].to_numpy()).astype(np.float32),
        "scale": np.where(exchanged, 1 / scale, scale).astype(np.float32),
    }
    for name, values in columns.items():
        pairs = pairs.set_column(pairs.schema.get_field_index(name), name, pa.array(values))
    return pairs.sort_by([("first", "ascending"), ("second", "ascending")])


def _flat(lists: pa.ChunkedArray) -> Hashes:
    hashes: Hashes = lists.combine_chunks().flatten().to_numpy()
    return hashes


def _add(
    buckets: Buckets, masks: Sequence[np.uint64], hashes: Hashes, ranks: NDArray[np.int64], *, plain: bool
) -> None:
    """Add the hashes once for each mask, to the bucket of the blocks that the mask selects."""
    for mask in masks:
        group = splitmix64((hashes & mask) ^ splitmix64(mask.reshape(1)))  # identifies the blocks and their content
        table = {"group": group, "hash": hashes, "rank": ranks, "plain": np.full(len(hashes), plain)}
        buckets.add(pa.table(table), group % buckets.number)


def near_better(groups: Hashes, hashes: Hashes, ranks: NDArray[np.int64], plain: Bools, distance: int) -> Bools:
    """Check whether each row is near to a row of its group with a smaller rank, (N,).

    Args:
        groups: Group of each row, ascending, (N,).
        hashes: Hash of each row, (N,).
        ranks: Rank of each row's image, ascending within a group, (N,).
        plain: True for the hash of the image itself, False for a variant. Two variants are not compared, (N,).
        distance: Number of bits that may differ.
    """
    return _near_better(groups, hashes, ranks, plain, np.uint64(distance))


@compiled
def _near_better(groups: Hashes, hashes: Hashes, ranks: NDArray[np.int64], plain: Bools, distance: np.uint64) -> Bools:
    is_near = np.zeros(len(groups), np.bool_)
    leaders = np.empty(len(groups), np.int64)  # the first row of each hash in the group
    num_leaders = 0
    for row in range(len(groups)):
        if row and groups[row] != groups[row - 1]:
            num_leaders = 0
        is_new = True
        for position in range(num_leaders):
            leader = leaders[position]
            if hashes[leader] == hashes[row] and plain[leader] == plain[row]:
                is_new = False
            # Two variants are not compared, nor an image with itself.
            if not (plain[row] or plain[leader]) or ranks[leader] == ranks[row]:
                continue
            if num_bits(hashes[row] ^ hashes[leader]) <= distance:
                is_near[row] = True
        if is_new:
            leaders[num_leaders] = row
            num_leaders += 1
    return is_near
