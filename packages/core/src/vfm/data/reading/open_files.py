"""Count the files that a process may keep open."""

from __future__ import annotations

import resource

MOST = 1024  # a window has 1,000 shards by default. The footer of a Parquet file may take a megabyte of memory
USUAL = 512  # fits a limit of 1,024 files, the default of most systems


def max_open_shards(num_datasets: int = 1) -> int:
    """Compute the number of shards that a dataset may keep open, from the process's limit of open files.

    It is a quarter of the limit, since a process may read several datasets, or up to `USUAL` a half.

    Args:
        num_datasets: Number of datasets that are read together. They keep up to three quarters of the limit open.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST
    alone = min(MOST, max(soft // 4, min(USUAL, soft // 2)))
    return max(1, min(alone, 3 * soft // 4 // num_datasets))
