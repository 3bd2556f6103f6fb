"""Get entries from the sources of `curation.metadata`, by one function for each type.

Each function takes the source's configuration, the context and a number of processes. It yields (language, entries),
where entries map each entry to the name of its source, strongest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.compute as pc

from vfm.data import open_dataset
from vfm.plugin import Context, Preflight, UserError
from vfm_curation.metadata.content_words import ContentWords, WordNetForms
from vfm_curation.metadata.counting import MAX_COUNTED, SpillingCounter
from vfm_curation.metadata.files import read_lists
from vfm_curation.metadata.function_words import base_language, function_words
from vfm_curation.metadata.stages import CaptionWords, Lists, Numbers, Pageviews, Wikipedia, WordNet, Words
from vfm_curation.metadata.tokenizers import writes_spaces
from vfm_curation.metadata.vocabulary import ABOVE_CHANCE, Vocabulary
from vfm_curation.metadata.wikimedia import views_of_hour
from vfm_curation.metadata.wikipedia import Corpus, check_wikitext_parser
from vfm_curation.metadata.wordnet import NUMBERS, wordnet_entries
from vfm_curation.pool_texts import texts_of

Entries = tuple[str, Mapping[str, str]]
CONTENT_PMI = 7.0  # bits: words that are together 128 times as often as by chance, such as "fire hydrant"


def check_captions(source: CaptionWords, ctx: Preflight) -> None:
    """Check that the pool has the languages, and that WordNet's files are readable."""
    if source.wordnet_folder:
        WordNetForms(source.wordnet_folder)
    pool = ctx.artifact(source.pool)
    if pool:
        pool.check_languages(source.languages or (), str(source.pool))


def caption_entries(source: CaptionWords, ctx: Context, workers: int) -> Iterator[Entries]:
    """Yield words by count, then bigrams by PMI, of captions."""
    pool = ctx.load(source.pool)
    pool.check_languages(source.languages or (), source.pool)
    languages = source.languages or pool.languages[:1]
    vocabularies: dict[str, Vocabulary] = {}
    for language in languages:
        vocabularies[language] = Vocabulary(
            tokenizer=source.tokenizer.build(language, prose=False),
            folder=ctx.work / "counts" / language,
            max_counted=MAX_COUNTED // len(languages),
        )
    reader = open_dataset(pool)
    num_shards = len(reader.shard_sizes)
    num_texts = 0
    for shard in range(num_shards):
        texts = texts_of(reader, shard, on_bad=ctx.skip)
        for language, vocabulary in vocabularies.items():
            texts_in_language = texts["text"].filter(pc.equal(texts["language"], language))
            vocabulary.add(texts_in_language.to_pylist())
            num_texts += len(texts_in_language)
        ctx.progress(shard + 1, num_shards, "shards", texts=num_texts)
    num_words = sum(vocabulary.num_words for vocabulary in vocabularies.values())
    lists: dict[str, dict[str, str]] = {}
    for language, vocabulary in vocabularies.items():
        lists[language] = vocabulary.entries(
            source.size,
            min_count=source.min_count,
            bigram_min_count=source.bigram_min_count,
            bigram_share=source.bigram_share,
            min_pmi=_min_pmi(source),
            only=_content_words(source, language, ctx),
        )
    if not any(lists.values()):
        raise UserError(f"{ctx.stage}: {_why_none(source, list(languages), num_texts, num_words, ctx)}")
    for language, entries in lists.items():
        if not entries:
            ctx.warn(f"no word occurs {source.min_count} times in the captions in {language!r}: it has no entries")
        # Entries written with spaces are for texts of any language, unless the recipe names the languages.
        for_any_language = not source.languages and writes_spaces(language)
        yield ("" if for_any_language else language), entries


def _why_none(source: CaptionWords, languages: list[str], num_texts: int, num_words: int, ctx: Context) -> str:
    """Explain why captions give no entries.

    None were readable, they are in another language, or there are too few.
    """
    if not num_texts:
        bad = ", ".join(f"{count} x {reason}" for reason, count in ctx.bad.most_common(3))
        reason = f"'{source.pool}' has no caption in {', '.join(map(repr, languages))}"
        if not bad:
            return reason
        return f"{reason} (skipped: {bad})"
    kind = "content word" if source.words == "content" else "word"
    why = (
        f"no {kind} occurs {source.min_count} times in the captions of '{source.pool}' ({num_words} words in total);"
        " lower min_count or give path"
    )
    if source.words == "content" and any(_wordnet_of(source, language) for language in languages):
        why += "; in a language other than English, name it in the pool's texts and in languages, or set wordnet: null"
    return why


def _wordnet_of(source: CaptionWords, language: str) -> Path | None:
    if base_language(language) == "en":
        return source.wordnet_folder
    return None


def _min_pmi(source: CaptionWords) -> float:
    if source.bigram_min_pmi is not None:
        return source.bigram_min_pmi
    if source.words == "content":
        return CONTENT_PMI
    return ABOVE_CHANCE


def _content_words(source: CaptionWords, language: str, ctx: Context) -> ContentWords | None:
    """Create the filter that selects the content words of a language.

    Returns:
        None if all words become entries.
    """
    if source.words == "all":
        return None
    folder = _wordnet_of(source, language)
    known = "words that are no function words"
    if folder:
        known = f"those that WordNet knows ({folder})"
    elif not function_words(language):
        known = "all words, since there is no list of function words"
    ctx.log(f"content words{f' in {language}' if language else ''}: {known}")
    return ContentWords(language, WordNetForms(folder) if folder else None)


def check_list(source: Lists, ctx: Preflight) -> None:
    """Check that the file is readable."""
    read_lists(source.path, column=source.column, language=source.language)


def list_entries(source: Lists, ctx: Context, workers: int) -> Iterator[Entries]:
    """Yield the entries of a list in its order."""
    yield from read_lists(source.path, column=source.column, language=source.language).items()


def number_entries(source: Numbers, ctx: Context, workers: int) -> Iterator[Entries]:
    """Yield the numbers for each language."""
    for language in source.languages:
        yield language, dict.fromkeys(NUMBERS, "number")


def pageview_entries(source: Pageviews, ctx: Context, workers: int) -> Iterator[Entries]:
    """Yield titles of a Wikipedia, most viewed first."""
    views = SpillingCounter(ctx.work / "views")
    files = list(source.files())
    for done, file in enumerate(files, 1):
        hour = views_of_hour(Path(file), source.domain, mobile=source.mobile, on_bad=ctx.skip)
        views.add({title: count for title, count in hour.items() if count >= source.min_hourly_views})
        ctx.progress(done, len(files), "hours")
    titles = views.top(source.min_views, share=source.share, limit=source.max_titles)
    yield source.language, dict.fromkeys(titles, "wikipedia title")


def check_wikipedia(source: Wikipedia, ctx: Preflight) -> None:
    """Check that the extras are installed."""
    source.tokenizer.build(source.language, prose=True)
    if source.dump:
        check_wikitext_parser()


def wikipedia_entries(source: Wikipedia, ctx: Context, workers: int) -> Iterator[Entries]:
    """Yield words, then bigrams, of a Wikipedia or other running text."""
    tokenizer = source.tokenizer.build(source.language, prose=True)
    corpus = Corpus(tuple(map(Path, source.files())), bool(source.dump), source.language, source.tokenizer)
    vocabulary = Vocabulary(tokenizer=tokenizer, folder=ctx.work / "counts" / corpus.source_hash, resume=True)
    corpus.count(vocabulary, ctx, workers)
    words = vocabulary.top_words(source.unigram_min_count, share=source.unigram_share, limit=source.max_unigrams)
    pairs = vocabulary.top_pairs(
        source.bigram_min_count, rank=source.bigram_rank, min_pmi=source.bigram_min_pmi, limit=source.max_bigrams
    )
    if not pairs and source.bigram_rank == "pmi":
        highest = math.log2(max(1, vocabulary.num_words))
        ctx.warn(
            f"no bigram has a PMI of {source.bigram_min_pmi:g} bits; {vocabulary.num_words:,} words can reach"
            f" {highest:.1f}: lower bigram_min_pmi, or rank by score"
        )
    yield source.language, dict.fromkeys(words, "wikipedia unigram")
    yield source.language, dict.fromkeys(pairs, "wikipedia bigram")


def check_wordnet(source: WordNet, ctx: Preflight) -> None:
    """Check that the files are WordNet's."""
    wordnet_entries(Path(source.path), numbers=source.numbers)


def wordnet_source_entries(source: WordNet, ctx: Context, workers: int) -> Iterator[Entries]:
    """Yield numbers, then names of synsets in the order of the files."""
    yield source.language, wordnet_entries(Path(source.path), numbers=source.numbers)


def word_entries(source: Words, ctx: Context, workers: int) -> Iterator[Entries]:
    """Yield the entries of the recipe."""
    yield source.language, dict.fromkeys(source.words, "recipe")
