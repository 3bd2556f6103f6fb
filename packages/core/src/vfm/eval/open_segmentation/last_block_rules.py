"""Configurations of the rules by which the last block of a CLIP model computes patch features (`rules`)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.base import Part
from vfm.interfaces import ClipCheckpoint, Ref, VisionCheckpoint


class LastBlockRule(Part):
    """How the last block computes patch features.

    It has the attention, and whether residual and MLP are used. `build(load)` creates a
    `vfm.eval.open_segmentation.rules.Rule`, where `load` loads the model of a Ref.
    """

    label: str = Field("", description="name in the results; default: the type")

    @property
    def name(self) -> str:
        """Name in the results."""
        return self.label or self.type


class UnchangedClip(LastBlockRule):
    """The unchanged block."""

    type: Literal["clip"] = Field("clip", description="the unchanged block")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:clip"


class MaskClip(LastBlockRule):
    """Each patch attends to itself, with residual and MLP, as in the published MaskCLIP code (arXiv:2112.01071)."""

    type: Literal["maskclip"] = Field("maskclip", description="each patch attends to itself, with residual and MLP")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:maskclip"


class MaskClipBare(LastBlockRule):
    """Each patch attends to itself, without residual and MLP. Tables of later papers often call this MaskCLIP."""

    type: Literal["maskclip_bare"] = Field(
        "maskclip_bare", description="each patch attends to itself, without residual and MLP"
    )
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:maskclip_bare"


class Similarity(LastBlockRule):
    """Base class of rules with attention between queries or between keys."""

    rope: bool = Field(True, description="keep rotary positions in the similarities, if the encoder has them")


class Sclip(Similarity):
    """The sum of attention from queries to queries and from keys to keys, with residual and MLP (arXiv:2312.01597)."""

    type: Literal["sclip"] = Field("sclip", description="queries to queries plus keys to keys, with residual and MLP")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:sclip"


class ClearClip(Similarity):
    """Attention from queries to queries, without residual and MLP (arXiv:2407.12442)."""

    type: Literal["clearclip"] = Field("clearclip", description="queries to queries, without residual and MLP")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:clearclip"


class NaClip(Similarity):
    """Attention from keys to keys, raised near each patch, without residual and MLP (arXiv:2404.08181)."""

    type: Literal["naclip"] = Field("naclip", description="keys to keys, raised near each patch")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:naclip"

    sigma: float = Field(5.0, gt=0, description="width of the neighbourhood, in patches")


class ProxyClip(LastBlockRule):
    """Attention by the similarity of another encoder's patches, without residual and MLP (arXiv:2408.04883)."""

    type: Literal["proxyclip"] = Field("proxyclip", description="attention by another encoder's patch similarity")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:proxyclip"

    encoder: Ref[VisionCheckpoint | ClipCheckpoint] = Field(
        description="the other encoder, such as a model from eva.train"
    )
    layer: int = Field(-1, description="block of the other encoder whose tokens are compared; -1: last block")
    enlarge: float = Field(1.0, gt=0, description="enlargement of its input windows, for a finer grid")
    beta: float = Field(1.2, ge=0, description="similarities below this multiple of their mean get no attention")
    gamma: float = Field(3.0, gt=0, description="factor of the remaining similarities before the softmax")
