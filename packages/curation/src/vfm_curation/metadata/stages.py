"""Configurations of `curation.metadata` and of the sources that its entries come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    Artifact,
    Config,
    CuratedSubset,
    Metadata,
    Part,
    Pool,
    Preflight,
    Ref,
    expand_paths,
    load_function,
)
from vfm_curation.metadata.tokenizer_parts import AutoTokenizer, TokenizerField
from vfm_curation.runtime import CurationStage

# Folders of Debian's and Fedora's packages, of WordNet's own installer, and of Homebrew.
WORDNET_FOLDERS = (
    "/usr/share/wordnet", "/usr/share/wordnet-3.0/dict", "/usr/local/WordNet-3.0/dict", "/opt/homebrew/opt/wordnet/dict"
)  # fmt: skip
LANGUAGE = Field("", description="language of the texts that the entries are for; default: any language")
TOKENIZER: Any = Field(
    AutoTokenizer(),
    description="how texts are split: words (at spaces), characters, or icu (its words; an extra) for languages"
    " without spaces; auto: characters for zh, ja, th, lo, km, my, bo and their variants, else words",
)
COLUMN: Any = Field(
    None, description="column of a .csv or .tsv with a header; default: the first column of a file without a header"
)


class EntrySource(Part):
    """Source of entries of `curation.metadata`.

    `work` names a function `(source, ctx, workers) -> iterator of (language, entries)`, where entries are a mapping of
    each entry to the name of its source, strongest first. `checks` names a function `(source, preflight)`.
    """

    checks: ClassVar[str] = ""

    def files(self) -> Iterable[str]:
        """List the outside files that the entries depend on."""
        return ()

    def preflight(self, ctx: Preflight) -> None:
        """Run the checks that are possible before any stage runs."""
        if self.checks:
            load_function(self.checks)(self, ctx)


class CaptionSettings(Config):
    """Settings for taking entries from captions."""

    min_count: int = Field(5, ge=1, description="from captions: smallest number of occurrences of a word")
    bigram_min_count: int = Field(5, ge=1, description="from captions: smallest number of occurrences of a bigram")
    bigram_share: float = Field(
        0.3, ge=0, le=1, description="from captions: fraction of entries that are bigrams, highest PMI first"
    )
    bigram_min_pmi: float | None = Field(
        None,
        description="from captions: smallest PMI of a bigram in bits; default: 7 (128 times chance) with"
        " words: content, else above 0",
    )
    words: Literal["all", "content"] = Field(
        "all",
        description="from captions: all words, or only content words and names, and bigrams of these: no function words"
        " (en, de, fr, es, it, pt, nl, cs, ar), and in English only words that WordNet knows, where it is installed",
    )
    wordnet: str | None = Field(
        "auto",
        description="with words: content: folder of WordNet's files; auto: where it is usually installed; null: none",
    )
    languages: list[str] | None = Field(
        None,
        min_length=1,
        description="from captions: entries for each of these languages, from its captions; default: entries for any"
        " language, from captions in the pool's first (only for that one if it is written without spaces)",
    )
    tokenizer: TokenizerField = TOKENIZER

    @property
    def wordnet_folder(self) -> Path | None:
        """Folder of WordNet's files for content words, or None."""
        if self.words == "all" or self.wordnet is None:
            return None
        if self.wordnet != "auto":
            return Path(self.wordnet)
        return next((folder for folder in map(Path, WORDNET_FOLDERS) if (folder / "index.noun").is_file()), None)


class CaptionWords(CaptionSettings, EntrySource):
    """Words and bigrams of captions."""

    type: Literal["captions"] = Field("captions", description="words and bigrams of captions")
    pool: Ref[Pool | CuratedSubset] = Field(description="pool, or subset, whose captions are counted")
    size: int | None = Field(None, ge=1, description="largest number of entries of each language")

    def files(self) -> Iterable[str]:
        """List WordNet's files, if they are used."""
        folder = self.wordnet_folder
        if not folder:
            return []
        paths: list[str] = []
        for kind in ("noun", "verb", "adj", "adv"):
            paths += [str(folder / f"index.{kind}"), str(folder / f"{kind}.exc")]
        return paths

    work: ClassVar[str] = "vfm_curation.metadata.sources:caption_entries"
    checks: ClassVar[str] = "vfm_curation.metadata.sources:check_captions"


class Lists(EntrySource):
    """Entries of a list."""

    type: Literal["list"] = Field("list", description="a list of entries")
    path: str = Field(
        description=".txt, .csv or .tsv; .json: a list, a mapping of entries to sources, or of languages to either; a"
        " folder of LANGUAGE.json"
    )
    column: str | None = COLUMN
    language: str = LANGUAGE

    work: ClassVar[str] = "vfm_curation.metadata.sources:list_entries"
    checks: ClassVar[str] = "vfm_curation.metadata.sources:check_list"

    def files(self) -> Iterable[str]:
        """List the file."""
        return [self.path]


class Numbers(EntrySource):
    """The strings "0" to "99"."""

    type: Literal["numbers"] = Field("numbers", description="the strings 0 to 99")
    languages: list[str] = Field([""], min_length=1, description="languages that get the numbers")

    work: ClassVar[str] = "vfm_curation.metadata.sources:number_entries"


class Pageviews(EntrySource):
    """Titles of a Wikipedia by their page views."""

    type: Literal["pageviews"] = Field("pageviews", description="titles of a Wikipedia by page views")
    paths: str | list[str] = Field(description="hourly files pageviews-DATE-HOUR.gz; a list, `{00..23}` or `*`")
    domain: str = Field("en", description="code of the Wikipedia in these files")
    language: str = LANGUAGE
    mobile: bool = Field(False, description="count views of the mobile site (en.m) too, as MetaCLIP 2 does")
    min_hourly_views: int = Field(50, ge=1, description="views of a title in an hour for the hour to count")
    min_views: int = Field(70, ge=1, description="views of a title in all hours together")
    share: float = Field(1.0, gt=0, le=1, description="largest fraction of all titles to take, the most viewed")
    max_titles: int | None = Field(None, ge=0, description="largest number of titles to take, the most viewed")

    work: ClassVar[str] = "vfm_curation.metadata.sources:pageview_entries"

    def files(self) -> Iterable[str]:
        """List the hourly files."""
        return expand_paths(self.paths)


class Wikipedia(EntrySource):
    """Words by count and bigrams by PMI, of a Wikipedia or any other running text."""

    type: Literal["wikipedia"] = Field(
        "wikipedia", description="words and bigrams of a Wikipedia, or of any running text"
    )
    dump: str | list[str] | None = Field(
        None, description="XML dump, ...-pages-articles.xml.bz2; several as a list, `{1..27}` or `*`"
    )
    text: str | list[str] | None = Field(
        None, description="plain text instead of a dump, as WikiExtractor writes it; also .gz and .bz2"
    )
    language: str = LANGUAGE
    tokenizer: TokenizerField = TOKENIZER
    unigram_min_count: int = Field(100, ge=1, description="smallest number of occurrences of a word")
    unigram_share: float = Field(1.0, gt=0, le=1, description="largest fraction of distinct words, the most frequent")
    max_unigrams: int | None = Field(None, ge=0, description="largest number of words, the most frequent")
    bigram_min_count: int = Field(1, ge=1, description="smallest number of occurrences of a bigram")
    bigram_rank: Literal["pmi", "score"] = Field(
        "pmi", description="rank bigrams by pmi, or by MetaCLIP 2's score (count + 1)^0.7 * (PMI - its 30 % quantile)"
    )
    bigram_min_pmi: float = Field(
        30.0, description="with bigram_rank pmi: smallest PMI of a bigram in bits; in a text of N words at most log2(N)"
    )
    max_bigrams: int | None = Field(None, ge=0, description="largest number of bigrams, the highest ranked")

    work: ClassVar[str] = "vfm_curation.metadata.sources:wikipedia_entries"
    checks: ClassVar[str] = "vfm_curation.metadata.sources:check_wikipedia"

    @model_validator(mode="after")
    def _makes_sense(self) -> Wikipedia:
        if (self.dump is None) == (self.text is None):
            raise ValueError("give exactly one of dump and text")
        if self.bigram_rank == "score" and self.max_bigrams is None:
            raise ValueError("bigram_rank score needs max_bigrams: a score has no threshold")
        return self

    def files(self) -> Iterable[str]:
        """List the dumps or texts."""
        return expand_paths(self.dump or self.text or [])


class WordNet(EntrySource):
    """The names of WordNet's synsets, preceded by the numbers as in the paper."""

    type: Literal["wordnet"] = Field("wordnet", description="names of WordNet's synsets")
    path: str = Field(
        description="folder with data.noun, data.verb, data.adj and data.adv, such as /usr/share/wordnet, or a .tab"
        " file of the Open Multilingual Wordnet"
    )
    numbers: bool = Field(True, description='put "0" to "99" first, as in the paper')
    language: str = LANGUAGE

    work: ClassVar[str] = "vfm_curation.metadata.sources:wordnet_source_entries"
    checks: ClassVar[str] = "vfm_curation.metadata.sources:check_wordnet"

    def files(self) -> Iterable[str]:
        """List the folder or file."""
        return [self.path]


class Words(EntrySource):
    """Entries written in the recipe."""

    type: Literal["words"] = Field("words", description="entries written in the recipe")
    words: list[str] = Field(min_length=1, description="the entries, strongest first")
    language: str = LANGUAGE

    work: ClassVar[str] = "vfm_curation.metadata.sources:word_entries"


class BuildMetadata(CaptionSettings, CurationStage):
    """Build the list of entries that texts are matched against, from captions, a list or several sources."""

    kind: Literal["curation.metadata"] = "curation.metadata"
    captions: Ref[Pool | CuratedSubset] | None = Field(None, description="pool whose captions give the entries")
    path: str | None = Field(
        None, description="list of entries (.txt, .json, .csv, .tsv), or a folder of WordNet files"
    )
    column: str | None = COLUMN
    merge: list[EntrySource] | None = Field(
        None,
        min_length=1,
        description="sources of entries in their order, each {type: captions, list, numbers, pageviews, wikipedia,"
        " wordnet or words, ...}; an entry of several sources belongs to the first",
    )
    size: int | None = Field(
        None, ge=1, description="largest number of entries of each language; default: all that qualify"
    )

    version: ClassVar[int] = 3
    makes: ClassVar[type[Artifact]] = Metadata
    work: ClassVar[str] = "vfm_curation.metadata.build:build_metadata"
    checks: ClassVar[str] = "vfm_curation.metadata.build:check_metadata"

    @model_validator(mode="after")
    def _one_source(self) -> BuildMetadata:
        if [self.captions, self.path, self.merge].count(None) != 2:
            raise ValueError(
                "give exactly one of captions (a pool), path (a list of entries) and merge (several sources)"
            )
        if self.captions:
            misplaced = []
        else:
            misplaced = sorted(self.model_fields_set & set(CaptionSettings.model_fields))
        if misplaced:
            raise ValueError(f"{', '.join(misplaced)}: only with captions")
        return self

    @property
    def entry_sources(self) -> Sequence[EntrySource]:
        """Sources of the entries, including sources given by the short forms `captions` and `path`."""
        if self.captions:
            settings = self.model_dump(include=set(CaptionSettings.model_fields))
            return [CaptionWords(pool=self.captions, size=self.size, **settings)]
        if self.path:
            return [Lists(path=self.path, column=self.column)]
        return self.merge or ()

    def sources(self) -> Iterable[str]:
        """List the files of all sources."""
        return chain.from_iterable(source.files() for source in self.entry_sources)
