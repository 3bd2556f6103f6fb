"""Filter of exact duplicates: the same address, the same text, or the same file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vfm.config import UserError
from vfm_curation.filters.base import Filter

if TYPE_CHECKING:
    import pyarrow as pa

    from vfm_curation.filters.base import Bools, Unit
    from vfm_curation.filters.sieve import Sieve


class Duplicates(Filter):
    """Keeps one of all units whose URL, text or image file is the same, byte for byte: that of the smallest uid.

    So what is kept does not depend on the order of samples or shards. Of an image that falls, all texts fall; a text
    falls alone, whatever its language. Equal means equal in 128 bits of blake2b. Samples without a URL all pass.
    """

    type: Literal["duplicates"] = Field("duplicates", description="one that has been seen, byte for byte")
    of: Literal["url", "text", "image"] = Field(description="what is the same: the address, a text, the image's file")

    @property
    def reason(self) -> str:
        """Told apart by what is the same."""
        return f"duplicate_{self.of}"

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """Texts, or images with their texts."""
        return "text" if self.of == "text" else "image"

    @property
    def measures(self) -> tuple[Literal["images"], ...]:  # type: ignore[override]
        """Of the images, unless texts are the same."""
        return () if self.of == "text" else ("images",)

    @property
    def sees_images(self) -> bool:
        """An address is known without its image."""
        return self.of == "image"

    @property
    def columns(self) -> frozenset[str]:
        """The hash."""
        return frozenset({self.of})

    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """In two passes: by hash into buckets, and what falls there back into the order of shards."""
        from vfm_curation.filters.buckets import Buckets, Fallen, num_buckets

        def units() -> Iterator[pa.Table]:
            return sieve.texts() if self.unit == "text" else sieve.images()

        number = num_buckets(sieve.num_units(self.unit))
        buckets = Buckets(sieve.scratch / "by_hash", number)
        fallen = Fallen(sieve.scratch / "fallen", number, sieve.num_shards)
        high, low = f"{self.of}_high", f"{self.of}_low"
        num_hashed = 0
        for table in units():
            known = table.select(["shard", "unit", "uid", high, low]).drop_null()
            buckets.add(known, known[high].to_numpy() % number)
            num_hashed += len(known)
        if self.of == "url" and not num_hashed and sieve.num_units("image"):
            raise UserError("duplicates of url: no sample tells its URL (a field `url` of its json, a column `url`)")
        for table in buckets:
            fallen.add(first_of_each(table, [high, low])[1])
        yield from fallen.passing(units())


def first_of_each(table: pa.Table, keys: list[str]) -> tuple[pa.Table, pa.Table]:
    """Of the rows with equal keys the one of the smallest uid, and the others; both sorted by keys and uid.

    Texts of one sample are in their own order. Only where a uid is that of several samples, shard and row decide.
    """
    import numpy as np
    import pyarrow as pa

    table = table.sort_by([(name, "ascending") for name in (*keys, "uid", "shard", "unit")])
    columns = [table[key].to_numpy() for key in keys]
    later = np.zeros(len(table), dtype=np.bool_)
    later[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return table.filter(pa.array(~later)), table.filter(pa.array(later))
