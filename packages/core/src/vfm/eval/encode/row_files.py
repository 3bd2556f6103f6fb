"""Temporary files of features in half precision, one row per image, so that memory does not grow with the data."""

# N images

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vfm.base import UserError
from vfm.train.parallel.sharing import writes_files


class RowFile:
    """Rows of the same shape in a file. The first append sets the shape."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shape: tuple[int, ...] = ()

    def append(self, rows: Tensor) -> None:
        """Write rows, fp16 (N, ...). Tensors without values, in a process that does not score, are skipped."""
        self.shape = tuple(rows.shape[1:])
        if not rows.is_meta:
            with self.file.open("ab") as stream:
                stream.write(rows.numpy().tobytes())

    def rows(self) -> Tensor:
        """Map all rows from the file, fp16 (N, ...).

        Raises:
            UserError: If there is no row.
        """
        if not self.shape:
            raise UserError("no image can be used")
        return torch.from_numpy(np.memmap(self.file, np.float16, mode="r+").reshape(-1, *self.shape))


@contextmanager
def row_files(folder: Path, names: Iterable[str]) -> Iterator[dict[str, RowFile]]:
    """Open an empty file for each name, and remove the folder at the end. Only one of several processes writes."""
    writes = writes_files()
    if writes:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield {name: RowFile(folder / f"{name}.fp16") for name in names}
    finally:
        if writes:
            shutil.rmtree(folder, ignore_errors=True)
