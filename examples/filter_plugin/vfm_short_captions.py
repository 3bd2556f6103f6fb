"""A filter of your own for `curation.filter`: drop captions that are short, or that contain an unwanted word."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from vfm_curation import RowFilter


class ShortCaptions(RowFilter):
    """Drop captions with few words, or with a word from a list."""

    type: Literal["short_captions"] = "short_captions"  # also the reason code of what it drops
    min_words: int = Field(4, ge=1, description="fewest words of a caption")
    unwanted: list[str] = Field([], description="words that no caption may contain, in lower case")

    columns: ClassVar[frozenset[str]] = frozenset({"caption"})  # the text itself, beside `words` and `characters`
    work: ClassVar[str] = "vfm_short_captions:passes"


def passes(config: ShortCaptions, table: Any) -> list[bool]:
    """Return whether each text of a shard's table passes."""
    unwanted = set(config.unwanted)
    return [
        len(words) >= config.min_words and unwanted.isdisjoint(words)
        for words in (caption.lower().split() for caption in table["caption"].to_pylist())
    ]
