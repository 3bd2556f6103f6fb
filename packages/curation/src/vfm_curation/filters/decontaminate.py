"""Filter of what a model will be judged on: images that are, or look like, images of evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, ImageDataset
from vfm.stage import Preflight, Ref
from vfm_curation.filters.base import Filter

if TYPE_CHECKING:
    from vfm_curation.filters.base import Bools, Measure
    from vfm_curation.filters.sieve import Sieve


class Decontaminate(Filter):
    """Drops images that are near to any image of the given sets: by perceptual hash, and by cosine with a `clip`.

    Memory holds 8 bytes of each image of the sets, and its embedding where there is a `clip`.
    """

    type: Literal["decontaminate"] = Field("decontaminate", description="near to an image of an evaluation set")
    against: list[Ref[ImageDataset]] = Field(min_length=1, description="the evaluation sets")
    max_distance: int = Field(4, ge=0, le=10, description="bits of the 64-bit perceptual hash that may differ")
    clip: Ref[ClipCheckpoint] | None = Field(None, description="a model whose image embeddings are compared too")
    min_cosine: float | None = Field(None, gt=0, le=1, description="with clip: cosine from which images are near")

    unit = "image"

    @model_validator(mode="after")
    def _both_or_none(self) -> Decontaminate:
        if (self.clip is None) != (self.min_cosine is None):
            raise ValueError("clip and min_cosine belong together: give both or none")
        return self

    @property
    def measures(self) -> tuple[Measure, ...]:  # type: ignore[override]
        """Hashes, and embeddings where a model is given."""
        return ("images", "embeddings") if self.clip else ("images",)

    @property
    def columns(self) -> frozenset[str]:
        """The perceptual hash."""
        return frozenset({"phash"})

    @property
    def model(self) -> Ref[ClipCheckpoint] | None:
        """The model whose embeddings are compared."""
        return self.clip

    def complaints(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """A pool that is compared with itself would lose everything."""
        if pool in self.against:
            yield f"'{pool}' against itself leaves nothing"

    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """Against the hashes, then against the embeddings, of all sets together."""
        import numpy as np

        from vfm_curation.filters.hamming import near_any

        hashes = np.concatenate([sieve.hashes_of(dataset) for dataset in self.against])
        near = (near_any(table["phash"].to_numpy(), hashes, self.max_distance) for table in sieve.images())
        if not self.clip:
            yield from (~one for one in near)
            return
        yield from (~(one | other) for one, other in zip(near, self._near_by_cosine(sieve, self.clip), strict=True))

    def _near_by_cosine(self, sieve: Sieve, clip: Ref[ClipCheckpoint]) -> Iterator[Bools]:
        import numpy as np
        import torch

        from vfm.train.dist import resolve_device
        from vfm_curation.filters.clusters import near_any

        assert self.min_cosine
        device = resolve_device(sieve.runtime)
        vectors = np.concatenate([sieve.embeddings_of(dataset, clip) for dataset in self.against])
        references = torch.from_numpy(vectors).to(device)
        for _, images in sieve.embeddings(clip):
            yield near_any(torch.from_numpy(images).to(device), references, self.min_cosine)
