"""Where to cut a list of scores: at a value, or so that a fraction is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from vfm_curation.filters.base import Filter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vfm_curation.filters.base import Bools

    Scores = NDArray[np.float32]

CUTS = ("min_score", "max_score", "top_fraction", "bottom_fraction")
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ScoreFilter(Filter):
    """A filter by one number of each unit, cut by exactly one rule. Scores equal to the cut pass."""

    min_score: float | None = Field(None, allow_inf_nan=False, description="least score that passes")
    max_score: float | None = Field(None, allow_inf_nan=False, description="largest score that passes")
    top_fraction: Fraction | None = Field(None, description="share of what stands to keep, the highest scores")
    bottom_fraction: Fraction | None = Field(None, description="share of what stands to keep, the lowest scores")

    @model_validator(mode="after")
    def _one_cut(self) -> ScoreFilter:
        if sum(getattr(self, name) is not None for name in CUTS) != 1:
            raise ValueError(f"give exactly one of {', '.join(CUTS)}")
        return self

    def cut(self, scores: Callable[[], Iterable[Scores]], total: int) -> Iterator[Bools]:
        """Which units of each batch pass.

        Args:
            scores: gives all scores anew, in batches; one that is no number never passes.
            total: how many there are. A fraction keeps round(fraction * total), at least one, and what ties with the
                last of them, so that no order decides.
        """
        import numpy as np

        from vfm_curation.filters.top import kth_largest

        lowest = self.max_score is not None or self.bottom_fraction is not None
        sign = np.float32(-1 if lowest else 1)

        def rising() -> Iterator[Scores]:  # what is kept comes first
            return (np.nan_to_num(batch * sign, nan=-np.inf, posinf=np.inf, neginf=-np.inf) for batch in scores())

        fraction = self.top_fraction or self.bottom_fraction
        bound = self.min_score if self.min_score is not None else self.max_score
        if fraction and total:
            limit = np.float32(kth_largest(rising, max(1, round(fraction * total))))
        else:
            limit = np.float32(bound or 0) * sign
        for batch in rising():
            yield (batch >= limit) & (batch > -np.inf)
