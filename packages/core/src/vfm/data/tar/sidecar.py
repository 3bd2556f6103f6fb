"""Find the number of samples in a tar without scanning it, from the files that img2dataset writes next to it."""

from __future__ import annotations

import json

from vfm.base import UserError
from vfm.data.tables.parquet_files import DAMAGE, open_parquet
from vfm.data.tar.members import BLOCK
from vfm.storage import files
from vfm.storage.credentials import is_for_one_file


def ends_with_mark(path: str) -> bool:
    """Check whether a tar ends with a block of zeros, so that it is not truncated."""
    size, _ = files.size_and_time(path)
    return size >= BLOCK and not any(files.read_bytes(path, size - BLOCK, size))


def sidecar_count(path: str) -> int | None:
    """Read the number of samples in img2dataset's files next to a tar.

    These files are `00000_stats.json` or `00000.parquet`. Without a readable one, the number is unknown (None).
    """
    stem = path.removesuffix(".tar")
    if is_for_one_file(path):  # a server refuses the signature of one file for others
        return None
    if files.exists(f"{stem}_stats.json"):
        try:
            count = json.loads(files.read_bytes(f"{stem}_stats.json"))["successes"]
        except (ValueError, LookupError, TypeError, OSError, RecursionError):
            count = None
        if isinstance(count, int) and count >= 0:
            return count
    if files.exists(f"{stem}.parquet"):
        try:
            with open_parquet(f"{stem}.parquet") as parquet:
                if "status" in parquet.schema_arrow.names:
                    return int(parquet.read(["status"])["status"].to_pylist().count("success"))
        except (UserError, UnicodeDecodeError, *DAMAGE):
            return None
    return None
