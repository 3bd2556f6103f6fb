"""The texts of a pool's shard, where a file that was damaged after its pool was made is told in one line."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from vfm.config import UserError
from vfm.data import Source

OnBad = Callable[[str, str], None]  # told (reason, where) of a sample that cannot be used


def texts_of(source: Source, shard: int, *, on_bad: OnBad | None = None) -> pa.Table:
    """`Source.texts_of_shard`: row, uid, language, text_index, text.

    Raises:
        UserError: the shard's parquet cannot be read to its end. (Its footer is whole, else it had no place in a pool.)
    """
    try:
        return source.texts_of_shard(shard, on_bad=on_bad)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the system's: nothing is known of the file
            raise
        path, reason = source.index.shards[shard].path, " ".join(str(error).split())
        raise UserError(f"{path}: damaged, write it anew or make the pool without it: {reason}") from None
