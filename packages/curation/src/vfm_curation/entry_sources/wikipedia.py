"""Entries from a Wikipedia: words, pairs of words, titles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vfm.data.files import expand_paths
from vfm.stage import Context, Preflight
from vfm_curation.entry_sources.base import LANGUAGE, TOKENIZER, Entries, EntrySource, TokenizerName


class Wikipedia(EntrySource):
    """Words by count and pairs of words by PMI, of a Wikipedia or any other running text."""

    type: Literal["wikipedia"] = Field(description="words and pairs of words of a Wikipedia, or of any running text")
    dump: str | list[str] | None = Field(
        None, description="XML dump, ...-pages-articles.xml.bz2; several as a list, `{1..27}` or `*`"
    )
    text: str | list[str] | None = Field(
        None, description="plain text instead of a dump, as WikiExtractor leaves it; also .gz and .bz2"
    )
    language: str = LANGUAGE
    tokenizer: TokenizerName = TOKENIZER
    unigram_min_count: int = Field(100, ge=1, description="occurrences that a word needs")
    unigram_share: float = Field(1.0, gt=0, le=1, description="of all distinct words at most this share, the commonest")
    max_unigrams: int | None = Field(None, ge=0, description="at most this many words, the commonest")
    bigram_min_count: int = Field(1, ge=1, description="occurrences that a pair of words needs")
    bigram_rank: Literal["pmi", "score"] = Field(
        "pmi", description="pmi; or MetaCLIP 2's score (count + 1)^0.7 * (PMI - its 30 % quantile)"
    )
    bigram_min_pmi: float = Field(
        30.0, description="bits that a pair needs, with bigram_rank pmi; a text of N words reaches log2(N) at most"
    )
    max_bigrams: int | None = Field(None, ge=0, description="at most this many pairs, the strongest")

    @model_validator(mode="after")
    def _makes_sense(self) -> Wikipedia:
        if (self.dump is None) == (self.text is None):
            raise ValueError("give exactly one of dump and text")
        if self.bigram_rank == "score" and self.max_bigrams is None:
            raise ValueError("bigram_rank score needs max_bigrams: a score has no threshold")
        return self

    def files(self) -> Iterable[str]:
        """The dumps or texts."""
        return expand_paths(self.dump or self.text or [])

    def preflight(self, ctx: Preflight) -> None:
        """The extras are installed."""
        from vfm_curation.metadata.tokenizers import find_tokenizer

        find_tokenizer(self.tokenizer, self.language, prose=True)
        if self.dump:
            import mwparserfromhell  # noqa: F401

    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """Words, then pairs."""
        from vfm_curation.metadata.tokenizers import find_tokenizer
        from vfm_curation.metadata.vocabulary import Vocabulary
        from vfm_curation.metadata.wikipedia import Corpus

        tokenizer = find_tokenizer(self.tokenizer, self.language, prose=True)
        corpus = Corpus(tuple(map(Path, self.files())), bool(self.dump), self.language, self.tokenizer)
        vocabulary = Vocabulary(tokenizer=tokenizer, folder=ctx.work / "counts" / corpus.made, resume=True)
        corpus.count(vocabulary, ctx, workers)
        words = vocabulary.top_words(self.unigram_min_count, share=self.unigram_share, limit=self.max_unigrams)
        pairs = vocabulary.top_pairs(
            self.bigram_min_count, rank=self.bigram_rank, min_pmi=self.bigram_min_pmi, limit=self.max_bigrams
        )
        if not pairs and self.bigram_rank == "pmi":
            most = math.log2(max(1, vocabulary.num_words))
            ctx.warn(
                f"no pair of words has a PMI of {self.bigram_min_pmi:g} bits; {vocabulary.num_words:,} words can reach"
                f" {most:.1f}: lower bigram_min_pmi, or rank by score"
            )
        yield self.language, dict.fromkeys(words, "wikipedia unigram")
        yield self.language, dict.fromkeys(pairs, "wikipedia bigram")


class Pageviews(EntrySource):
    """Titles of a Wikipedia by their page views."""

    type: Literal["pageviews"] = Field(description="titles of a Wikipedia by page views")
    paths: str | list[str] = Field(description="hourly files pageviews-DATE-HOUR.gz; a list, `{00..23}` or `*`")
    domain: str = Field("en", description="code of the Wikipedia in these files")
    language: str = LANGUAGE
    mobile: bool = Field(False, description="whether views of the mobile site (en.m) count too, as in MetaCLIP 2")
    min_hourly_views: int = Field(50, ge=1, description="views in an hour without which the hour does not count")
    min_views: int = Field(70, ge=1, description="views in all hours together that a title needs")
    share: float = Field(1.0, gt=0, le=1, description="of all titles at most this share, the most viewed")
    max_titles: int | None = Field(None, ge=0, description="at most this many titles, the most viewed")

    def files(self) -> Iterable[str]:
        """The hours."""
        return expand_paths(self.paths)

    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """Titles, most viewed first."""
        from vfm_curation.metadata.counting import SpillingCounter
        from vfm_curation.metadata.pageviews import views_of_hour

        views, files = SpillingCounter(ctx.work / "views"), list(self.files())
        for done, file in enumerate(files, 1):
            hour = views_of_hour(Path(file), self.domain, mobile=self.mobile, on_bad=ctx.skip)
            views.add({title: count for title, count in hour.items() if count >= self.min_hourly_views})
            ctx.progress(done, len(files), "hours")
        titles = views.top(self.min_views, share=self.share, limit=self.max_titles)
        yield self.language, dict.fromkeys(titles, "wikipedia title")
