"""Entries counted in captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from vfm.artifacts import CuratedSubset, Pool
from vfm.config import Config, UserError
from vfm.stage import Context, Preflight, Ref
from vfm_curation.entry_sources.base import TOKENIZER, Entries, EntrySource, TokenizerName


class CaptionSettings(Config):
    """How entries are taken from captions."""

    min_count: int = Field(5, ge=1, description="from captions: occurrences that a word needs")
    bigram_min_count: int = Field(5, ge=1, description="from captions: occurrences that a pair of words needs")
    bigram_share: float = Field(0.3, ge=0, le=1, description="from captions: share of pairs, strongest PMI first")
    languages: list[str] | None = Field(
        None,
        min_length=1,
        description="from captions: entries for each of these, from its captions; default: entries for any language,"
        " from the captions in the pool's first (for that one alone where it writes no spaces)",
    )
    tokenizer: TokenizerName = TOKENIZER


class Captions(CaptionSettings, EntrySource):
    """Words and pairs of words of captions."""

    type: Literal["captions"] = Field(description="words and pairs of words of captions")
    pool: Ref[Pool | CuratedSubset] = Field(description="whose captions; of a subset the kept ones")
    size: int | None = Field(None, ge=1, description="at most this many entries of each language")

    def preflight(self, ctx: Preflight) -> None:
        """The pool has the languages."""
        pool = ctx.artifact(self.pool)
        if pool:
            pool.check_languages(self.languages or (), str(self.pool))

    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """Words by count, then pairs by PMI."""
        from vfm_curation.metadata.captions import count_captions
        from vfm_curation.metadata.tokenizers import writes_spaces

        pool = ctx.load(self.pool)
        pool.check_languages(self.languages or (), self.pool)
        found = count_captions(pool, self.languages or pool.languages[:1], self.tokenizer, ctx)
        num_words = sum(vocabulary.num_words for vocabulary in found.values())
        lists = {
            language: vocabulary.entries(
                self.size,
                min_count=self.min_count,
                bigram_min_count=self.bigram_min_count,
                bigram_share=self.bigram_share,
            )
            for language, vocabulary in found.items()
        }
        if not any(lists.values()):
            raise UserError(
                f"{ctx.stage}: no word stands {self.min_count} times in the captions of '{self.pool}'"
                f" ({num_words} words in all); lower min_count or give path"
            )
        for language, entries in lists.items():
            if not entries:
                ctx.warn(f"no word stands {self.min_count} times in the captions in {language!r}: it has no entries")
            yield (language if self.languages or not writes_spaces(language) else ""), entries
