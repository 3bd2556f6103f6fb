"""Filter of pictures that look the same: another size, quality or format of one picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vfm_curation.filters.base import Filter

if TYPE_CHECKING:
    import pyarrow as pa

    from vfm_curation.filters.base import Bools
    from vfm_curation.filters.sieve import Sieve

MANY_ROWS = 100  # of an image, from which on the user is told what the distance costs


class NearDuplicates(Filter):
    """Drops an image whose 64-bit perceptual hash is near that of an image with a smaller uid.

    That one need not be kept itself: of a chain of near pictures the first alone is. All pairs within the distance
    are found. Pictures of one colour, or nearly so, all look the same to the hash.
    """

    type: Literal["near_duplicates"] = Field("near_duplicates", description="looks like one that has been seen")
    max_distance: int = Field(4, ge=0, le=10, description="bits of 64 that may differ; the README tells what that does")

    unit = "image"
    measures = ("images",)

    @property
    def columns(self) -> frozenset[str]:
        """The hash."""
        return frozenset({"phash"})

    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """Of equal hashes the first is left, and of these, those are compared that agree on some of their blocks."""
        import pyarrow as pa

        from vfm.data.draws import splitmix64
        from vfm_curation.filters.buckets import Buckets, Fallen, num_buckets
        from vfm_curation.filters.duplicates import first_of_each
        from vfm_curation.filters.hamming import block_masks

        num_images = sieve.num_units("image")
        number, masks = num_buckets(num_images), block_masks(self.max_distance, num_images)
        if len(masks) > MANY_ROWS:
            sieve.ctx.warn(
                f"near_duplicates: with max_distance {self.max_distance} each of {num_images} images is written and"
                f" sorted {len(masks)} times, with 4 {len(block_masks(4, num_images))} times"
            )
        fallen = Fallen(sieve.scratch / "fallen", number, sieve.num_shards)
        equal = Buckets(sieve.scratch / "equal", number)
        for table in sieve.images():
            equal.add(table.select(["shard", "unit", "uid", "phash"]), table["phash"].to_numpy() % number)
        agreeing = Buckets(sieve.scratch / "agreeing", num_buckets(num_images * len(masks)))
        for table in equal:
            first, later = first_of_each(table, ["phash"])
            fallen.add(later)
            for mask in masks if self.max_distance else ():
                blocks = first["phash"].to_numpy() & mask
                group = splitmix64(
                    blocks ^ splitmix64(mask.reshape(1))
                )  # 64 bits for each choice and content of blocks
                agreeing.add(first.append_column("group", pa.array(group)), group % agreeing.number)
        for table in agreeing:
            fallen.add(self._near_earlier(table))
        yield from fallen.passing(sieve.identities())

    def _near_earlier(self, table: pa.Table) -> pa.Table:
        """The rows that are near to one of a smaller uid in their group."""
        import pyarrow as pa

        from vfm_curation.filters.hamming import has_earlier_neighbour

        table = table.sort_by([(name, "ascending") for name in ("group", "uid", "shard", "unit")])
        near = has_earlier_neighbour(table["group"].to_numpy(), table["phash"].to_numpy(), self.max_distance)
        return table.filter(pa.array(near))
