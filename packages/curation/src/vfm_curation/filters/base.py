"""What a filter is: its configuration, and a verdict on each text or image that still stands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from vfm.artifacts import ClipCheckpoint
from vfm.config import Config
from vfm.stage import Preflight, Ref

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from vfm_curation.filters.sieve import Sieve

Bools: TypeAlias = "NDArray[np.bool_]"

Unit = Literal["text", "image"]
Measure = Literal["images", "embeddings", "scores"]  # each is taken once, of what stands when it is first needed


class Filter(Config):
    """Says of each text, or of each image with all its texts, whether it goes on.

    A subclass has a `type`, which is also the reason code of what it drops, and looks at the columns that it asks for.
    """

    type: str
    unit: ClassVar[Unit] = "text"
    measures: ClassVar[tuple[Measure, ...]] = ()

    @property
    def reason(self) -> str:
        """The code of what falls here."""
        return self.type

    @property
    def sees_images(self) -> bool:
        """Whether it needs the images themselves, so that a pool of texts and addresses will not do."""
        return bool(self.measures)

    @property
    def columns(self) -> frozenset[str]:
        """What must be measured of texts and images beyond length: `texts.TEXT_COLUMNS` and `images.IMAGE_COLUMNS`."""
        return frozenset()

    @property
    def model(self) -> Ref[ClipCheckpoint] | None:
        """The CLIP model that it asks."""
        return None

    @property
    def package(self) -> tuple[str, str] | None:
        """A module that it needs, and the extra of this package that brings it."""
        return ("torch", "clip") if self.model else None

    @property
    def files(self) -> tuple[str, ...]:
        """Outside files that the verdict depends on."""
        return ()

    def complaints(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """What can be known to be wrong before anything runs, a line each."""
        yield from ()

    @abstractmethod
    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """For each shard of the pool in turn, which of the standing units pass, in their order."""


class LocalFilter(Filter):
    """A filter that needs to see no more than the text or image itself."""

    def judge(self, sieve: Sieve) -> Iterator[Bools]:
        """`passes` of each shard."""
        for table in sieve.texts() if self.unit == "text" else sieve.images():
            yield self.passes(table)

    @abstractmethod
    def passes(self, table: pa.Table) -> Bools:
        """Which rows of a shard's measured units pass."""
