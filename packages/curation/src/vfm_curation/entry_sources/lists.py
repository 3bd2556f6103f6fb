"""Entries that somebody has listed: numbers, WordNet, files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from vfm.stage import Context, Preflight
from vfm_curation.entry_sources.base import LANGUAGE, Entries, EntrySource


class Numbers(EntrySource):
    """The strings "0" to "99"."""

    type: Literal["numbers"] = Field(description="the strings 0 to 99")
    languages: list[str] = Field([""], min_length=1, description="gives each of them the numbers")

    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """The numbers, for each language."""
        from vfm_curation.metadata.wordnet import NUMBERS

        for language in self.languages:
            yield language, dict.fromkeys(NUMBERS, "number")


class WordNet(EntrySource):
    """The names of WordNet's synsets, as in the paper with the numbers before them."""

    type: Literal["wordnet"] = Field(description="names of WordNet's synsets")
    path: str = Field(
        description="folder with data.noun, data.verb, data.adj and data.adv, such as /usr/share/wordnet; or a .tab"
        " file of the Open Multilingual Wordnet"
    )
    numbers: bool = Field(True, description='whether "0" to "99" come first, as in the paper')
    language: str = LANGUAGE

    def files(self) -> Iterable[str]:
        """The folder or file."""
        return [self.path]

    def preflight(self, ctx: Preflight) -> None:
        """The files are WordNet's."""
        self._read()

    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """Numbers, then names in the order of the files."""
        yield self.language, self._read()

    def _read(self) -> dict[str, str]:
        from vfm_curation.metadata.wordnet import wordnet_entries

        return wordnet_entries(Path(self.path), numbers=self.numbers)


class Words(EntrySource):
    """Entries written in the recipe itself."""

    type: Literal["words"] = Field(description="entries written here")
    words: list[str] = Field(min_length=1, description="the entries, strongest first")
    language: str = LANGUAGE

    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """The entries as they stand."""
        yield self.language, dict.fromkeys(self.words, "recipe")


class Lists(EntrySource):
    """Entries as somebody has listed them."""

    type: Literal["list"] = Field(description="a list of entries")
    path: str = Field(
        description=".txt, .csv or .tsv; .json: a list, a mapping of entries to sources, or of languages to either; a"
        " folder of LANGUAGE.json"
    )
    column: str | None = Field(
        None, description="of a .csv or .tsv with a header; default: the first, without a header"
    )
    language: str = LANGUAGE

    def files(self) -> Iterable[str]:
        """The file."""
        return [self.path]

    def preflight(self, ctx: Preflight) -> None:
        """The file is readable."""
        self._read()

    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """The entries in the file's order."""
        yield from self._read().items()

    def _read(self) -> dict[str, dict[str, str]]:
        from vfm_curation.metadata.files import read_lists

        return read_lists(self.path, column=self.column, language=self.language)
