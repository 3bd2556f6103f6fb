"""The stage `curation.balance`: all texts of rare entries, and about `t` of each common one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import Artifact, CuratedSubset, Matches, Metadata, PairDataset, Pool
from vfm.config import UserError
from vfm.interfaces import Curation
from vfm.stage import Context, Preflight
from vfm_curation.match_stage import COUNTS_FILE

if TYPE_CHECKING:
    from vfm.panels import Panel
    from vfm_curation.balance import Floats, Integers
    from vfm_curation.data_card import DataCard, FunnelStep, WhatIf
    from vfm_curation.subset import BalancedShard, SubsetTotals
    from vfm_curation.thresholds import EntryLanguages

Positive = Annotated[float, Field(gt=0)]
FACTORS = (1 / 10, 1 / 3, 1, 3, 10)  # of t, shown beside the chosen one
MAX_SHARDS_FOR_EXAMPLES = 8


class MetaclipBalance(Curation):
    """Keeps all texts of rare entries and about `t` of each common one."""

    version: ClassVar[int] = 3
    kind: Literal["curation.balance"] = "curation.balance"
    t: Positive | dict[str, Positive] | None = Field(
        None,
        description="texts per entry above which an entry is head, 20000 for 400M pairs; one for all, or one for each"
        " language of the entries: {en: 20000, de: 5000}",
    )
    target_size: int | None = Field(None, ge=1, description="expected number of kept texts; t is solved from it")
    tail_share: float | None = Field(
        None, gt=0, lt=1, description="share of matches in entries below t, in each language; 0.06 in the papers"
    )
    reference_language: str | None = Field(
        None,
        description="with t or target_size: whose t that is; every other language gets the t of the same tail share"
        " (MetaCLIP 2); default: one t for all",
    )
    texts: Literal["every", "one_per_image"] = Field(
        "every",
        description="every text is drawn by itself (MetaCLIP 1), or one text of each image is chosen at random first"
        " (MetaCLIP 2)",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> MetaclipBalance:
        if [self.t, self.target_size, self.tail_share].count(None) != 2:
            raise ValueError("give exactly one of t, target_size and tail_share")
        if self.reference_language is not None and (self.tail_share or isinstance(self.t, dict)):
            raise ValueError("reference_language goes with target_size, or with one t: tail_share and a t for each"
                             " language say all")  # fmt: skip
        return self

    def preflight(self, ctx: Preflight) -> None:
        """There are as many matched texts as wanted, and entries in the languages that have a t."""
        matches = ctx.artifact(self.matches)
        if not matches:
            return
        from vfm_curation.thresholds import check_languages

        if self.target_size and self.target_size > matches.num_matched:
            raise UserError(f"target_size {self.target_size} is not possible: {matches.num_matched} texts matched")
        languages = Metadata.load(matches.linked(matches.metadata)).languages
        check_languages(self.t if isinstance(self.t, dict) else [], languages, "t")
        if self.reference_language is not None:
            check_languages([self.reference_language], languages, "reference_language")

    def run(self, ctx: Context) -> CuratedSubset:
        """Writes `subset.parquet`, one row a matched text, and the data card: counts of entries before and after."""
        import numpy as np

        from vfm_curation.balance import keep_probability
        from vfm_curation.card_panels import panels
        from vfm_curation.data_card import DataCard
        from vfm_curation.metadata import load_entries
        from vfm_curation.shards import texts_by_language
        from vfm_curation.subset import write_subset

        begun = time.monotonic()
        matches = ctx.load(self.matches)
        pairs = _pairs(matches)
        entries = load_entries(Metadata.load(matches.linked(matches.metadata)))
        languages, counts = _languages(entries), np.load(matches.path / COUNTS_FILE).astype(np.int64)
        thresholds = self._thresholds(matches, languages, counts)
        t = languages.t_of_entries(thresholds)
        choices = self._choices(matches, counts, t)
        expected = next(one.expected.size for one in choices if one.factor == 1)
        named = ", ".join(f"t{f' of {name}' if name else ''} = {value:g}" for name, value in thresholds.items())
        ctx.log(f"{named}: {expected:,.0f} of {matches.num_matched:,} matched texts are expected to be kept")
        probability = keep_probability(counts, t)
        made = write_subset(ctx.directory, self._shards(ctx, matches, probability), len(entries))
        if not made.num_texts:
            raise UserError(f"{self.name}: {named} keeps none of {matches.num_matched} matched texts; raise t")
        ctx.log(f"{made.num_texts:,} texts of {made.num_samples:,} images are kept")
        funnel = _funnel(matches, made, time.monotonic() - begun)
        texts_of = texts_by_language(matches.path)
        card = DataCard(entries, languages, counts, probability, thresholds, made, funnel, choices, texts_of)
        card.save(ctx.directory)
        for panel in [*panels(card), self._examples(matches, pairs, card)]:
            ctx.panel(panel)
        values = {"expected_texts": expected, "kept_texts": made.num_texts, "kept_samples": made.num_samples}
        values |= {f"t/{name}" if name else "t": value for name, value in thresholds.items()}
        values = {f"curation/{name}": value for name, value in values.items()}
        ctx.emit("metrics", step=1, samples=made.num_samples, values=values)
        return CuratedSubset.create(
            ctx.directory,
            num_samples=made.num_samples,
            languages=[language for language in pairs.languages if language in made.keys],
            pool=_pool(pairs).reference(ctx.directory),
            matches=matches.reference(ctx.directory),
            texts=self.texts,
        )

    def _thresholds(self, matches: Matches, languages: EntryLanguages, counts: Integers) -> dict[str, float]:
        """The t of each language of the entries."""
        from vfm_curation.balance import keep_probability, t_for_target_size
        from vfm_curation.subset import expected_size
        from vfm_curation.thresholds import by_reference, by_tail_share, given

        if self.tail_share:
            return by_tail_share(languages, counts, self.tail_share)
        reference = self.reference_language

        def from_one(t: float) -> dict[str, float]:
            return given(languages, t) if reference is None else by_reference(languages, counts, t, reference)

        def size(t: float) -> float:
            probability = keep_probability(counts, languages.t_of_entries(from_one(t)))
            return expected_size(matches.path, probability, self.texts)

        if self.target_size:
            return from_one(t_for_target_size(size, self.target_size, counts))
        assert self.t
        return given(languages, self.t) if isinstance(self.t, dict) else from_one(self.t)

    def _shards(self, ctx: Context, matches: Matches, probability: Floats) -> Iterator[BalancedShard]:
        from vfm_curation.shards import num_shards, read_shards
        from vfm_curation.subset import balance_shard

        total, num_texts, num_kept, begun = num_shards(matches.path), 0, 0, time.monotonic()
        for done, shard in enumerate(read_shards(matches.path), 1):
            balanced = balance_shard(shard, probability, self.seed, self.texts)
            num_texts, num_kept = num_texts + len(balanced.kept), num_kept + int(balanced.kept.sum())
            yield balanced
            rate = round(num_texts / max(1e-9, time.monotonic() - begun))
            ctx.progress(done, total, "shards", texts_per_second=rate, kept=num_kept)

    def _choices(self, matches: Matches, counts: Integers, t: Floats) -> list[WhatIf]:
        from vfm_curation.balance import keep_probability, tail_share
        from vfm_curation.data_card import WhatIf
        from vfm_curation.subset import expectations

        found = expectations(matches.path, [keep_probability(counts, t * factor) for factor in FACTORS], self.texts)
        return [
            WhatIf(factor, tail_share(counts, t * factor), int((counts > t * factor).sum()), expected)
            for factor, expected in zip(FACTORS, found, strict=True)
        ]

    def _examples(self, matches: Matches, pairs: PairDataset, card: DataCard) -> Panel:
        """Texts of a few shards, as they fared."""
        from itertools import islice

        from vfm.data import open_dataset
        from vfm_curation.card_panels import examples
        from vfm_curation.shards import read_shards, texts_in
        from vfm_curation.subset import balance_shard

        source = open_dataset(pairs)
        found = (shard for shard in read_shards(matches.path) if len(shard.table))
        shown = (
            (
                balance_shard(shard, card.probability, self.seed, self.texts),
                texts_in(source, shard.table["shard"][0].as_py(), shard.table["language"].unique().to_pylist()),
            )
            for shard in islice(found, MAX_SHARDS_FOR_EXAMPLES)
        )
        return examples(card, shown)


def _pairs(matches: Matches) -> PairDataset:
    """What was matched: a pool or a subset of one."""
    return PairDataset.load(matches.linked(matches.pool))


def _pool(pairs: PairDataset) -> Artifact:
    return Pool.load(pairs.linked(pairs.pool)) if isinstance(pairs, CuratedSubset) else pairs


def _languages(entries: Any) -> EntryLanguages:
    from vfm_curation.thresholds import EntryLanguages

    encoded = entries["language"].combine_chunks().dictionary_encode()
    return EntryLanguages(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype("int64"))


def _funnel(matches: Matches, made: SubsetTotals, seconds: float) -> list[FunnelStep]:
    from vfm_curation.data_card import FunnelStep, seconds_of

    return [
        FunnelStep("texts", matches.num_texts),
        FunnelStep("matched", matches.num_matched, seconds_of(matches.path)),
        FunnelStep("kept", made.num_texts, seconds),
    ]
