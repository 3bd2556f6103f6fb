"""Columns of Arrow tables as arrays."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def one_array(column: pa.Array | pa.ChunkedArray) -> Any:
    """Join the chunks of a column, without a copy of a single one. `combine_chunks` always copies.

    The array may begin within its buffers: see its `offset`.
    """
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
