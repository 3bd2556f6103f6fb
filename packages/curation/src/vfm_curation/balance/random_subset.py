"""Draw matched texts regardless of their entries, as the control of a balanced subset (`curation.random`)."""

from __future__ import annotations

import numpy as np

from vfm.data import read_subset_index
from vfm.plugin import Context, CuratedSubset, PairDataset, Preflight, UserError
from vfm_curation.balance.stages import RandomSubset
from vfm_curation.balance.subset import BalanceJob, create_subset, write_subset_files
from vfm_curation.counts.matches import check_files


def check_random(config: RandomSubset, ctx: Preflight) -> None:
    """Check that enough texts matched, in files of this version."""
    matches = ctx.artifact(config.matches)
    if matches:
        check_files(matches.path)
    like = config.like and ctx.artifact(config.like)
    if matches and (like or config.target_size):
        _size(config, matches.num_matched, like or None)


def random_texts(config: RandomSubset, ctx: Context) -> CuratedSubset:
    """Write the subset, with one row for each matched text, all with equal probability."""
    matches = ctx.load(config.matches)
    like = ctx.load(config.like) if config.like else None
    pairs = PairDataset.load(matches.linked(matches.pool))
    size = _size(config, matches.num_matched, like)
    # No dimension: the chance of a text, not of its entries.
    job = BalanceJob.of(matches.path, ctx.work, np.array(size / matches.num_matched), seed=config.seed)
    totals = write_subset_files(ctx, job, config.runtime)
    if not totals.num_texts:
        raise UserError(f"{config.name}: the draw kept none of {matches.num_matched} matched texts; raise the size")
    ctx.log(f"kept {totals.num_texts:,} of {matches.num_matched:,} matched texts; {size:,} were expected")
    return create_subset(ctx, totals, matches, pairs)


def _size(config: RandomSubset, num_matched: int, like: CuratedSubset | None) -> int:
    """Compute the expected number of texts.

    Raises:
        UserError: If fewer texts matched than are expected.
    """
    size = kept_texts(like) if like else config.target_size
    assert size is not None
    if size > num_matched:
        if like:
            reason = f"'{config.like}' has {size} texts"
        else:
            reason = f"target_size {size} is not possible"
        raise UserError(f"{config.name}: {reason}, but {num_matched} texts matched")
    return size


def kept_texts(subset: CuratedSubset) -> int:
    """Read the number of kept texts from the subset's index."""
    index = read_subset_index(subset.path).to_pylist()
    # The row without a language has the totals of a shard.
    return sum(row["kept_texts"] for row in index if row["language"] is None)
