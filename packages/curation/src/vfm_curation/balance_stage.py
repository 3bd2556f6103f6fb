"""The stage `curation.balance`: all texts of rare entries, and about `t` of each common one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from vfm.artifacts import CuratedSubset, Matches, Metadata, Pool
from vfm.config import UserError
from vfm.interfaces import Curation
from vfm.stage import Context, Preflight
from vfm_curation.match_stage import COUNTS_FILE

if TYPE_CHECKING:
    from vfm.panels import Panel
    from vfm_curation.balance import Floats, Integers
    from vfm_curation.data_card import DataCard
    from vfm_curation.subset import BalancedShard


class MetaclipBalance(Curation):
    """Keeps all texts of rare entries and about `t` of each common one."""

    kind: Literal["curation.balance"] = "curation.balance"
    t: float | None = Field(
        None, gt=0, description="texts per entry above which an entry is head; 20000 for 400M pairs"
    )
    target_size: int | None = Field(None, ge=1, description="expected number of kept texts; t is solved from it")
    tail_share: float | None = Field(
        None, gt=0, lt=1, description="share of matches in entries below t, as in MetaCLIP 2; 0.06 in the papers"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> MetaclipBalance:
        if [self.t, self.target_size, self.tail_share].count(None) != 2:
            raise ValueError("give exactly one of t, target_size and tail_share")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """There are as many matched texts as wanted."""
        matches = ctx.artifact(self.matches)
        if matches and self.target_size and self.target_size > matches.num_matched:
            raise UserError(f"target_size {self.target_size} is not possible: {matches.num_matched} texts matched")

    def run(self, ctx: Context) -> CuratedSubset:
        """Writes `subset.parquet`, one row a kept text, and `entry_counts.parquet`, counts before and after."""
        import numpy as np

        from vfm_curation.balance import keep_probability
        from vfm_curation.data_card import DataCard
        from vfm_curation.metadata import load_entries
        from vfm_curation.subset import expected_size, write_subset

        matches = ctx.load(self.matches)
        pool = Pool.load(matches.linked(matches.pool))
        entries = load_entries(Metadata.load(matches.linked(matches.metadata)))["entry"].to_pylist()
        counts = np.load(matches.path / COUNTS_FILE)
        t = self._solve_t(matches, counts)
        probability = keep_probability(counts, t)
        expected = expected_size(matches.path, probability)
        ctx.log(f"t = {t:g}: {expected:,.0f} of {matches.num_matched:,} matched texts are expected to be kept")
        made = write_subset(ctx.directory, self._shards(ctx, matches, probability), len(entries))
        if not made.num_texts:
            raise UserError(f"{self.name}: t = {t:g} keeps none of {matches.num_matched} matched texts; raise t")
        funnel = {"texts": matches.num_texts, "matched": matches.num_matched, "kept": made.num_texts}
        card = DataCard(entries, counts, made.counts, probability, t, funnel)
        card.save(ctx.directory)
        for panel in [*card.panels(), self._examples(matches, pool, card)]:
            ctx.panel(panel)
        values = {"t": t, "expected_texts": expected, "kept_texts": made.num_texts, "kept_samples": made.num_samples}
        values = {f"curation/{name}": value for name, value in values.items()}
        ctx.emit("metrics", step=1, samples=made.num_samples, values=values)
        return CuratedSubset.create(
            ctx.directory,
            num_samples=made.num_samples,
            languages=[language for language in pool.languages if language in made.languages],
            pool=pool.reference(ctx.directory),
        )

    def _solve_t(self, matches: Matches, counts: Integers) -> float:
        from vfm_curation.balance import keep_probability, t_for_tail_share, t_for_target_size
        from vfm_curation.subset import expected_size

        if self.target_size:
            return t_for_target_size(
                lambda t: expected_size(matches.path, keep_probability(counts, t)), self.target_size, int(counts.max())
            )
        if self.tail_share:
            return t_for_tail_share(counts, self.tail_share)
        assert self.t
        return self.t

    def _shards(self, ctx: Context, matches: Matches, probability: Floats) -> Iterator[BalancedShard]:
        from vfm_curation.shards import num_shards, read_shards
        from vfm_curation.subset import balance_shard

        total, num_kept = num_shards(matches.path), 0
        for done, shard in enumerate(read_shards(matches.path), 1):
            balanced = balance_shard(shard, probability, self.seed)
            num_kept += int(balanced.kept.sum())
            yield balanced
            ctx.progress(done, total, unit="shards", kept=num_kept)

    def _examples(self, matches: Matches, pool: Pool, card: DataCard) -> Panel:
        """Texts of the first shard that has any, as they fared."""
        from vfm.data import open_dataset
        from vfm_curation.data_card import examples_panel
        from vfm_curation.shards import read_shards, texts_in
        from vfm_curation.subset import balance_shard

        shard = next(shard for shard in read_shards(matches.path) if len(shard.table))
        languages = shard.table["language"].unique().to_pylist()
        texts = texts_in(open_dataset(pool), shard.table["shard"][0].as_py(), languages)
        return examples_panel(balance_shard(shard, card.probability, self.seed), texts, card.entries, card.matched)
