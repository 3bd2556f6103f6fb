"""Filter by the length of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from vfm_curation.filters.base import LocalFilter

if TYPE_CHECKING:
    import pyarrow as pa

    from vfm_curation.filters.base import Bools


class CaptionLength(LocalFilter):
    """Drops texts that are too short or too long.

    The defaults are DataComp's basic filter: more than 5 characters and more than 2 words.

    Source: Gadre et al. 2023, DataComp (arXiv:2304.14108), basic filtering.
    """

    type: Literal["caption_length"] = Field("caption_length", description="too few or too many characters or words")
    min_characters: int = Field(6, ge=0, description="fewest characters of a text; DataComp: more than 5")
    max_characters: int | None = Field(None, ge=1, description="most characters of a text")
    min_words: int = Field(
        3, ge=0, description="fewest words between spaces; DataComp: more than 2. 0 for Chinese, Japanese, Thai"
    )
    max_words: int | None = Field(None, ge=1, description="most words of a text")

    @model_validator(mode="after")
    def _some_length_is_left(self) -> CaptionLength:
        for what in ("characters", "words"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if most is not None and most < least:
                raise ValueError(f"no text has at least {least} and at most {most} {what}")
        return self

    def passes(self, table: pa.Table) -> Bools:
        """By the columns `characters` and `words`."""
        characters, words = table["characters"].to_numpy(), table["words"].to_numpy()
        long_enough = (characters >= self.min_characters) & (words >= self.min_words)
        short_enough = (characters <= (self.max_characters or characters)) & (words <= (self.max_words or words))
        passes: Bools = long_enough & short_enough
        return passes
