"""Keep all texts of rare entries and about `t` of each frequent one (`curation.balance`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from vfm.data import BadSample, Source, decode_image, open_dataset
from vfm.plugin import (
    Context,
    CuratedSubset,
    ImagesPanel,
    Matches,
    Metadata,
    PairDataset,
    Panel,
    PanelImage,
    Preflight,
    UserError,
    store_files,
)
from vfm_curation.balance.card_panels import caption_of, deciles, examples, identities, panels, rarest_tenths
from vfm_curation.balance.data_card import DataCard, FunnelStep, WhatIf, seconds_of
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.balance.subset import (
    BalancedShard,
    BalanceJob,
    SubsetTotals,
    balance_shard,
    create_subset,
    expected_size,
    write_subset_files,
)
from vfm_curation.balance.thresholds import EntryLanguages, by_reference, by_tail_share, check_languages, t_by_language
from vfm_curation.counts.entry_counts import total_counts
from vfm_curation.counts.matches import COUNTS_FILE, check_files, num_shards, read_shards, texts_by_language
from vfm_curation.counts.probabilities import Floats, Integers, keep_probability, t_for_target_size, tail_share
from vfm_curation.counts.sampled_texts import SAMPLE_FILE, SampledTexts
from vfm_curation.engine import kept_workers
from vfm_curation.match.match import texts_in
from vfm_curation.metadata import load_entries

FACTORS = (1 / 10, 1 / 3, 1, 3, 10)  # multiples of t that the report compares
# Examples are for a glance, so a few shards are read again and not the pool.
MAX_SHARDS_FOR_EXAMPLES = 8
MAX_KEPT_FRACTION = 0.8  # of the matched texts. A larger fraction gives a warning
MIN_KEPT_FRACTION = 0.005  # of a language's matches. A smaller fraction gives a warning
GROUPS = (("head", 0, 3), ("middle", 3, 7), ("tail", 7, 10))  # tenths of all matches, most frequent entries first
NUM_IMAGES, NUM_TRIED = 4, 20  # images of each group, and images tried in each shard
SIDE = 160  # pixels of the longer side


def check_balance(config: MetaclipBalance, ctx: Preflight) -> None:
    """Check that enough texts matched, and that the languages with a t have entries."""
    matches = ctx.artifact(config.matches)
    if not matches:
        return
    check_files(matches.path)
    if config.target_size and config.target_size > matches.num_matched:
        raise UserError(f"target_size {config.target_size} is not possible: {matches.num_matched} texts matched")
    languages = Metadata.load(matches.linked(matches.metadata)).languages
    check_languages(config.t if isinstance(config.t, dict) else [], languages, "t")
    if config.reference_language is not None:
        check_languages([config.reference_language], languages, "reference_language")


def balance_texts(config: MetaclipBalance, ctx: Context) -> CuratedSubset:
    """Write the subset, a row for each matched text, and the data card with counts of entries before and after."""
    with kept_workers(config.runtime):  # for the trials of t, and the subset
        return _balance(config, ctx)


def _balance(config: MetaclipBalance, ctx: Context) -> CuratedSubset:
    begun = time.monotonic()
    matches = ctx.load(config.matches)
    pairs = PairDataset.load(matches.linked(matches.pool))  # a pool or a subset of one
    entries = load_entries(Metadata.load(matches.linked(matches.metadata)))
    languages = _entry_languages(entries)
    counts = store_files.read_npy(matches.path / COUNTS_FILE).astype(np.int64)
    thresholds = _thresholds(config, ctx, matches, languages, counts)
    t = languages.t_of_entries(thresholds)
    _warn_of_lost_languages(ctx, thresholds, languages, counts)
    sampled = SampledTexts.load(matches.path / SAMPLE_FILE)
    choices = _choices(config, sampled, counts, t)
    expected = next(choice.expected.size for choice in choices if choice.factor == 1)
    t_of_languages = []
    for name, value in thresholds.items():
        t_of_languages.append(f"t of {name} = {value:g}" if name else f"t = {value:g}")
    named = ", ".join(t_of_languages)
    ctx.log(f"{named}: {expected:,.0f} of {matches.num_matched:,} matched texts are expected to be kept")
    probability = keep_probability(counts, t)
    totals = _write_subset(config, ctx, matches, probability)
    if not totals.num_texts:
        raise UserError(f"{config.name}: {named} keeps none of {matches.num_matched} matched texts; raise t")
    ctx.log(f"kept {totals.num_texts:,} texts of {totals.num_samples:,} images")
    funnel = [
        FunnelStep("texts", matches.num_texts),
        FunnelStep("matched", matches.num_matched, seconds_of(matches.path)),
        FunnelStep("kept", totals.num_texts, time.monotonic() - begun),
    ]
    texts_of = texts_by_language(matches.path)
    card = DataCard(entries, languages, counts, probability, thresholds, totals, funnel, choices, texts_of)
    card.save(ctx.directory)
    _warn_of_too_much(ctx, matches.num_matched, totals.num_texts)
    for panel in [*panels(card), *_examples(config, ctx, matches, pairs, card)]:
        ctx.panel(panel)
    numbers = {f"t/{name}" if name else "t": value for name, value in thresholds.items()}
    return create_subset(ctx, totals, matches, pairs, config.texts, numbers)


def _warn_of_too_much(ctx: Context, num_matched: int, num_kept: int) -> None:
    if num_kept > MAX_KEPT_FRACTION * num_matched:
        ctx.warn(
            f"{num_kept / num_matched:.1%} of the matched texts are kept, so balancing changes little: nearly each has"
            " a rare entry; take fewer entries (words: content, a larger min_count), a smaller t or tail_share, or a"
            " target_size"
        )


def _warn_of_lost_languages(
    ctx: Context, thresholds: Mapping[str, float], languages: EntryLanguages, counts: Integers
) -> None:
    """Warn of each language that keeps almost nothing.

    This happens if an entry has almost all of its matches.
    """
    for name, t in thresholds.items():
        group = languages.of(counts, name)
        kept_fraction = float((group * keep_probability(group, t)).sum()) / max(1, int(group.sum()))
        if group.any() and kept_fraction < MIN_KEPT_FRACTION:
            language = f"language '{name}'" if name else "the texts"
            ctx.warn(f"t = {t:g} keeps {kept_fraction:.2%} of the matches of {language}; a larger t keeps more")


def _thresholds(
    config: MetaclipBalance, ctx: Context, matches: Matches, languages: EntryLanguages, counts: Integers
) -> dict[str, float]:
    """Find the t of each language of the entries."""
    if config.tail_share:
        return by_tail_share(languages, counts, config.tail_share, config.tail_rule)
    reference = config.reference_language

    def from_single_t(t: float) -> dict[str, float]:
        if reference is None:
            return t_by_language(languages, t)
        return by_reference(languages, counts, t, reference, config.tail_rule)

    sampled = SampledTexts.load(matches.path / SAMPLE_FILE)

    def size(t: float) -> float:
        probability = keep_probability(counts, languages.t_of_entries(from_single_t(t)))
        # A small pool is whole in memory, and a trial of t costs nothing. Otherwise each trial is a pass over the
        # shards.
        if sampled.complete:
            return sampled.expectations([probability], config.texts)[0].size
        job = BalanceJob.of(matches.path, ctx.work, probability, texts=config.texts)
        num_expected = expected_size(job, config.runtime)
        job.probability.unlink()
        return num_expected

    if config.target_size:
        return from_single_t(t_for_target_size(size, config.target_size, counts))
    assert config.t
    if isinstance(config.t, dict):
        return t_by_language(languages, config.t)
    return from_single_t(config.t)


def _write_subset(config: MetaclipBalance, ctx: Context, matches: Matches, probability: Floats) -> SubsetTotals:
    """Write the files of the subset, and count its entries."""
    job = BalanceJob.of(matches.path, ctx.work, probability, seed=config.seed, texts=config.texts)
    totals = write_subset_files(ctx, job, config.runtime)
    totals.counts = total_counts(job.kept_counts, range(num_shards(matches.path)), len(probability))
    return totals


def _choices(config: MetaclipBalance, sampled: SampledTexts, counts: Integers, t: Floats) -> list[WhatIf]:
    """Estimate the result of each multiple of t from the sample of matched texts."""
    probabilities = [keep_probability(counts, t * factor) for factor in FACTORS]
    expectations = sampled.expectations(probabilities, config.texts)
    choices = []
    for factor, expected in zip(FACTORS, expectations, strict=True):
        num_head = int((counts > t * factor).sum())
        choices.append(WhatIf(factor, tail_share(counts, t * factor), num_head, expected))
    return choices


def _examples(
    config: MetaclipBalance, ctx: Context, matches: Matches, pairs: PairDataset, card: DataCard
) -> Iterator[Panel]:
    """Yield the panels with kept and dropped texts of the first shards, and with images of kept texts."""
    source = open_dataset(pairs)

    def shards() -> Iterator[tuple[BalancedShard, pa.Table]]:
        with_texts = (shard for shard in read_shards(matches.path) if len(shard.table))
        for shard in islice(with_texts, MAX_SHARDS_FOR_EXAMPLES):
            number = shard.table["shard"][0].as_py()
            try:
                texts = texts_in(source, number, shard.table["language"].unique().to_pylist())
            except UserError as error:  # read by pass 1, and lost since then
                ctx.warn(f"the report has no examples of a shard that cannot be read: {error}")
                continue
            yield balance_shard(shard, card.probability, config.seed, config.texts), texts

    yield examples(card, shards())
    if source.index.spec.images:
        panel = image_panel(card, shards(), source, ctx.directory)
        if panel:
            yield panel


def _entry_languages(entries: pa.Table) -> EntryLanguages:
    encoded = entries["language"].combine_chunks().dictionary_encode()
    return EntryLanguages(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype("int64"))


def image_panel(
    card: DataCard, shards: Iterable[tuple[BalancedShard, pa.Table]], source: Source, directory: Path
) -> ImagesPanel | None:
    """Save small copies of images with kept texts in an artifact's folder.

    Args:
        card: The counts.
        shards: Balanced shards, each with all its texts. They are read until every group has its images.
        source: The pool or subset.
        directory: Folder of the artifact.

    Returns:
        The panel, or None if no image is readable.
    """
    decile = deciles(card.matched)
    images: dict[str, list[PanelImage]] = {name: [] for name, _, _ in GROUPS}
    (directory / "panels").mkdir(parents=True, exist_ok=True)
    for shard, texts in shards:
        reader = source.index.open(shard.matches.table["shard"][0].as_py())
        tenths = rarest_tenths(decile, shard)
        for name, first, stop in GROUPS:
            chosen = np.flatnonzero(shard.kept & (first <= tenths) & (tenths < stop))
            rows = shard.matches.table["row"].to_numpy()[chosen]
            for text in chosen[np.unique(rows, return_index=True)[1]][:NUM_TRIED].tolist():
                if len(images[name]) == NUM_IMAGES:
                    break
                (identity,) = identities(shard.matches.table.slice(text, 1))
                try:
                    image = decode_image(reader.read(identity[0]).image, name)
                except BadSample:  # matching read only the texts
                    continue
                image.thumbnail((SIDE, SIDE))
                file = f"panels/{name}-{len(images[name])}.jpg"
                image.save(directory / file, quality=90)
                images[name].append(PanelImage(file=file, caption=f"{name}: {caption_of(texts, identity)}"))
        if all(len(group) == NUM_IMAGES for group in images.values()):
            break
    shown = list(chain.from_iterable(images.values()))
    note = "Images of kept texts, by a text's rarest entry: in the first three, the middle four, the last three tenths."
    title = "Images of head, middle and tail"
    if not shown:
        return None
    return ImagesPanel(title=title, note=note, order=41, pictures=shown)
