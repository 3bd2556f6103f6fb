"""What all sources of entries share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from vfm.config import Config
from vfm.stage import Context, Preflight

Entries = tuple[str, Mapping[str, str]]  # a language, and its entries with the source of each
TokenizerName = Literal["auto", "words", "characters", "icu"]
LANGUAGE = Field("", description="of the texts that the entries are for; default: texts of any language")
TOKENIZER: Any = Field(
    "auto",
    description="words at spaces; characters, or words by icu (an extra), for languages without spaces;"
    " auto: characters for zh, ja, th, lo, km, my, bo and their like, words for all others",
)


class EntrySource(Config):
    """One source of entries."""

    type: str = Field(description="what kind of source this is")

    def files(self) -> Iterable[str]:
        """Outside files that the entries depend on."""
        return ()

    def preflight(self, ctx: Preflight) -> None:
        """Checks what can be known before anything runs."""

    @abstractmethod
    def entries(self, ctx: Context, workers: int) -> Iterator[Entries]:
        """The entries of each language, strongest first."""
