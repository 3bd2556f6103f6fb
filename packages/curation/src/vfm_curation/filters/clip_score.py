"""Filter by how well a text fits its image, as a CLIP model sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint
from vfm.stage import Preflight, Ref
from vfm_curation.filters.cut import ScoreFilter

if TYPE_CHECKING:
    from vfm_curation.filters.base import Bools
    from vfm_curation.filters.sieve import Sieve


class ClipScore(ScoreFilter):
    """Keeps texts by the cosine of text and image. What a cosine means depends on the model: a fraction carries over.

    LAION-5B kept a cosine of 0.28 and more (English, OpenAI's ViT-B/32), LAION-400M 0.3; DataComp's best single filter
    is the top 0.3 by OpenAI's ViT-L/14.

    Source: Schuhmann et al. 2022, LAION-5B (arXiv:2210.08402); Gadre et al. 2023, DataComp (arXiv:2304.14108).
    """

    type: Literal["clip_score"] = Field("clip_score", description="the text does not fit its image")
    clip: Ref[ClipCheckpoint] = Field(description="the model that scores")

    measures = ("embeddings", "scores")

    @property
    def model(self) -> Ref[ClipCheckpoint]:
        """The model that scores."""
        return self.clip

    def complaints(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """A bound that no cosine reaches."""
        bound = self.min_score if self.min_score is not None else self.max_score
        if bound is not None and not -1 <= bound <= 1:
            yield f"{bound:g} is no cosine: a bound is between -1 and 1"

    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """By the cosines."""
        return self.cut(lambda: sieve.scores(self.clip), sieve.num_units("text"))
