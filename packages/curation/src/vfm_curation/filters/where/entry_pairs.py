"""Read the entries of the remaining texts from the matches of their pool, for the table of the conditions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vfm.data import read_subset_shard, subset_file
from vfm.plugin import CuratedSubset, Matches, PairDataset, UserError, store_files
from vfm_curation.balance.subset import pool_of
from vfm_curation.counts.matches import COUNTS_FILE, check_files, matches_file, read_matches
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.where.stages import Where

PLACE = ["row", "language", "text_index"]  # of a text in its shard


@dataclass(frozen=True)
class EntryPairs:
    """The entries in the remaining texts of a shard: text texts[i] has the entry ids[i]."""

    texts: NDArray[np.int64]
    ids: NDArray[np.int32]
    num_not_matched: int  # texts that `curation.match` did not read


@dataclass(frozen=True)
class PoolMatches:
    """The matches of the pool of a filter.

    Attributes:
        matches: The matches.
        of: The dataset that was matched: the pool, or a subset of it.
        num_entries: Number of entries.
    """

    matches: Matches
    of: PairDataset
    num_entries: int

    @classmethod
    def of_filter(cls, config: Where, run: FilterRun) -> PoolMatches | None:
        """Load the matches of a filter, if it has some.

        Raises:
            UserError: If they are of another pool, or of an earlier version.
        """
        if not config.matches:
            return None
        matches = run.ctx.load(config.matches)
        check_files(matches.path)
        of = PairDataset.load(matches.linked(matches.pool))
        pool = pool_of(of).path
        if pool.resolve() != pool_of(PairDataset.load(run.dataset)).path.resolve():
            raise UserError(f"{config.reason}: matches: expected matches of '{run.pool}', got ones of {pool}")
        return cls(matches, of, len(store_files.read_npy(matches.path / COUNTS_FILE)))

    def pairs(self, run: FilterRun, shard: int) -> EntryPairs:
        """Read the entries of the remaining texts of a shard."""
        of_shard = read_matches(matches_file(self.matches.path, shard))
        texts = run.remaining.texts(shard, PLACE).select(PLACE)
        num_not_matched = len(texts) - self._num_read(run, texts, shard)
        texts = texts.append_column("text", pa.array(np.arange(len(texts))))
        matched = of_shard.table.select(PLACE).set_column(1, "language", of_shard.table["language"].cast(pa.string()))
        matched = matched.append_column("match", pa.array(np.arange(len(matched))))
        joined = matched.join(texts, PLACE, join_type="inner").sort_by("match")
        chosen = joined["match"].to_numpy()
        sizes = np.diff(of_shard.offsets)
        in_texts = np.zeros(len(sizes), np.bool_)
        in_texts[chosen] = True
        ids = of_shard.ids[np.repeat(in_texts, sizes)]
        return EntryPairs(np.repeat(joined["text"].to_numpy(), sizes[chosen]), ids, num_not_matched)

    def _num_read(self, run: FilterRun, texts: pa.Table, shard: int) -> int:
        """Count the texts that `curation.match` read, whether they have an entry or not."""
        if self.matches.languages:
            texts = texts.filter(pc.is_in(texts["language"], pa.array(self.matches.languages)))
        if not isinstance(self.of, CuratedSubset) or self.of.path.resolve() == run.dataset:
            return len(texts)
        if not subset_file(self.of.path, shard).is_file():
            return 0
        subset = read_subset_shard(self.of.path, shard, [*PLACE, "kept"])
        return len(texts.join(subset.filter(subset["kept"]), PLACE, join_type="left semi"))

    def warning(self, run: FilterRun, num_not_matched: int, num_texts: int) -> str:
        """Say how many of the texts of a filter were not matched."""
        matched = f"the texts of {self.of.path.resolve()}"
        if self.matches.languages:
            matched += f" in {', '.join(self.matches.languages)}"
        return (
            f"matches: expected matches of all {num_texts:,} texts of '{run.pool}', but {num_not_matched:,} were not"
            f" matched (only {matched}), so their entries are not counted"
        )
