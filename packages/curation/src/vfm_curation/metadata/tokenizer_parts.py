"""Configurations of tokenizers, which split texts into words for entries. A plugin adds one by a subclass."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from vfm.plugin import Part


class Tokenizer(Part):
    """Tokenizer of the texts that entries are counted in.

    `work` names a function `(config, language, *, prose) -> vfm_curation.metadata.tokenizers.WordSplitter`, with prose
    True for running text and False for captions; its words have no spaces. A recipe gives the type alone
    (`tokenizer: icu`), or a mapping with the fields of the type.
    """

    work: ClassVar[str] = "vfm_curation.metadata.tokenizers:built_in"

    @property
    def named(self) -> Any:
        """The type if it has no other fields, else all fields, as in a recipe."""
        fields = self.model_dump(mode="json")
        if len(fields) == 1:
            return self.type
        return fields


class AutoTokenizer(Tokenizer):
    """Split into characters for zh, ja, th, lo, km, my, bo and their variants, else into words."""

    type: Literal["auto"] = Field("auto", description="characters for languages without spaces, else words")


class WordsTokenizer(Tokenizer):
    """Split at spaces."""

    type: Literal["words"] = Field("words", description="words between spaces")


class CharactersTokenizer(Tokenizer):
    """Split into the characters of scripts without spaces, and runs of other letters."""

    type: Literal["characters"] = Field("characters", description="characters of scripts without spaces")


class IcuTokenizer(Tokenizer):
    """Split into words by ICU's dictionaries. Needs the extra `icu`."""

    type: Literal["icu"] = Field("icu", description="ICU's words (needs an extra)")


def _mapping(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"type": value}


TokenizerField = Annotated[Tokenizer, BeforeValidator(_mapping), PlainSerializer(lambda tokenizer: tokenizer.named)]
