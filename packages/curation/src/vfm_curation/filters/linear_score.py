"""Filter by any score that is linear in a CLIP model's image embedding: aesthetic, not safe for work, your own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint
from vfm.config import UserError
from vfm.stage import Preflight, Ref
from vfm_curation.filters.cut import ScoreFilter

if TYPE_CHECKING:
    from vfm_curation.filters.base import Bools
    from vfm_curation.filters.sieve import Sieve


class LinearScore(ScoreFilter):
    """Keeps images by weight . embedding + bias, the embedding of unit length.

    LAION's aesthetic predictors are such heads on OpenAI's encoders, with scores of 1 to 10. A head that ends in a
    sigmoid is given its logit here.
    """

    type: Literal["linear_score"] = Field("linear_score", description="a score by a linear head")
    clip: Ref[ClipCheckpoint] = Field(description="the model whose image embeddings the head takes")
    head: str = Field(min_length=1, description="safetensors file with `weight`, (D,) or (1, D), and perhaps `bias`")
    label: str = Field(
        "score",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="what the score is of, such as aesthetic: the reason is low_LABEL or high_LABEL",
    )

    unit = "image"
    measures = ("embeddings",)

    @property
    def reason(self) -> str:
        """What was wrong with the score."""
        keeps_high = self.min_score is not None or self.top_fraction is not None
        return f"{'low' if keeps_high else 'high'}_{self.label}"

    @property
    def model(self) -> Ref[ClipCheckpoint]:
        """The model below the head."""
        return self.clip

    @property
    def files(self) -> tuple[str, ...]:
        """The head."""
        return (self.head,)

    def complaints(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """A head that cannot be read, or does not fit the model."""
        from vfm_curation.filters.linear_head import head_width

        try:
            width = head_width(Path(self.head))
        except UserError as error:
            yield str(error)
            return
        clip = ctx.artifact(self.clip)
        if clip and clip.embed_dim != width:
            yield f"{self.head}: takes embeddings of width {width}; '{self.clip}' has {clip.embed_dim}"

    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """By the head's scores."""
        from vfm_curation.filters.linear_head import read_head

        weight, bias = read_head(Path(self.head))

        def scores() -> Iterator[Any]:
            for _, vectors in sieve.embeddings(self.clip):
                if vectors.shape[1] != len(weight):
                    raise UserError(
                        f"{self.head}: takes embeddings of width {len(weight)}; '{self.clip}' has {vectors.shape[1]}"
                    )
                yield vectors @ weight + bias

        return self.cut(scores, sieve.num_units("image"))
