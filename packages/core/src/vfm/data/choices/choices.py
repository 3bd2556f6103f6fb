"""Store images and statements with the right pairing, from MMVP, Winoground or SugarCrepe.

`choices.parquet` in the artifact's folder has one row per item: key, pattern, images (bytes), statements, truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.base import UserError
from vfm.interfaces import ChoiceDataset
from vfm.storage.store_files import open_parquet_file, reading

CHOICES_FILE = "choices.parquet"
ROWS_PER_GROUP = 64  # a row has images, so a group is some MB
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "pattern": pa.string(),
        "images": pa.list_(pa.binary()),
        "statements": pa.list_(pa.string()),
        "truth": pa.list_(pa.int32()),
    }
)


@dataclass(frozen=True)
class Choice:
    """An item of a caption-choice benchmark.

    Attributes:
        key: Name of the item.
        pattern: The aspect in which its images or statements differ.
        images: Encoded images, unchanged from the source file.
        statements: Any number of statements.
        truth: Index of each statement's image, -1 if it belongs to no image (SugarCrepe's wrong caption).

    Raises:
        ValueError: If `truth` does not fit images and statements.
    """

    key: str
    pattern: str
    images: list[bytes]
    statements: list[str]
    truth: list[int]

    def __post_init__(self) -> None:
        fits = len(self.truth) == len(self.statements) and all(-1 <= index < len(self.images) for index in self.truth)
        if not fits or not self.images or not self.statements:
            raise ValueError(
                f"{self.key}: truth {self.truth} does not fit {len(self.images)} images and {len(self.statements)}"
                " statements; expected the index of an image, or -1, for each statement"
            )


def write_choices(directory: Path, choices: Iterable[Choice]) -> ChoiceDataset:
    """Write the items, a few in memory at a time, and the artifact's facts."""
    directory.mkdir(parents=True, exist_ok=True)
    patterns: dict[str, None] = {}
    count = 0
    iterator = iter(choices)
    with pq.ParquetWriter(directory / CHOICES_FILE, SCHEMA, write_page_checksum=True) as writer:
        while rows := list(islice(iterator, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(list(map(vars, rows)), SCHEMA))
            for row in rows:
                patterns[row.pattern] = None
            count += len(rows)
    return ChoiceDataset.create(directory, num_pairs=count, patterns=list(patterns))


def load_choices(artifact: ChoiceDataset) -> Iterator[Choice]:
    """Yield the items of a dataset in order, a few in memory at a time.

    Raises:
        UserError: If the artifact's folder has no items, or the file is damaged.
    """
    path = artifact.path / CHOICES_FILE
    if not path.is_file():
        raise UserError(f"{artifact.path}: {CHOICES_FILE} is missing; expected a dataset of choices")
    with open_parquet_file(path) as file:
        batches = file.iter_batches(ROWS_PER_GROUP)
        while True:
            # Nothing is yielded inside `reading`, so that an error of the caller is not reported as a damaged file.
            with reading(path, "choices"):
                batch = next(batches, None)
                choices = []
                if batch:
                    choices = [Choice(**row) for row in batch.to_pylist()]
            if batch is None:
                return
            yield from choices
