"""Store several labels per image in `tags.parquet`, one row per image in the order of the dataset."""

# N images, C labels

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.base import UserError
from vfm.interfaces import TaggedImages
from vfm.storage.store_files import read_parquet, reading

TAGS_FILE = "tags.parquet"


def write_tags(file: Path, rows: Sequence[Sequence[int]]) -> None:
    """Write the labels of each image, one row per image."""
    tags = pa.array(rows, pa.list_(pa.int32()))
    pq.write_table(pa.table({"tags": tags}), file, write_page_checksum=True)


def read_tags(tags: TaggedImages) -> NDArray[np.bool_]:
    """Read a mask of the labels of each image, (N, C).

    Raises:
        UserError: If the file is missing or damaged.
    """
    file = tags.path / TAGS_FILE
    if not file.is_file():
        raise UserError(f"{tags.path}: {TAGS_FILE} is missing")
    column = read_parquet(file, ["tags"])["tags"].combine_chunks()
    mask = np.zeros((len(column), len(tags.class_names)), dtype=bool)
    with reading(file, f"labels of {len(tags.class_names)} classes"):
        mask[column.value_parent_indices().to_numpy(), column.flatten().to_numpy()] = True
    return mask
