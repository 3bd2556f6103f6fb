"""Rules by which the last block of a CLIP model turns patch tokens into features, the choices of `rules`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.base import Part
from vfm.interfaces import ClipCheckpoint, Ref, VisionCheckpoint


class LastBlockRule(Part):
    """How the last block makes patch features: its attention, and whether residual and MLP stay.

    `build(load)` returns a `vfm.eval.open_segmentation.rules.Rule`; `load` returns the model of a Ref.
    """

    label: str = Field("", description="name in the results; default: the type")

    @property
    def name(self) -> str:
        """Name in the results."""
        return self.label or self.type


class Clip(LastBlockRule):
    """The block as it is."""

    type: Literal["clip"] = Field("clip", description="the block as it is")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:clip"


class MaskClip(LastBlockRule):
    """Each patch attends to itself; residual and MLP stay, as in MaskCLIP's own code (arXiv:2112.01071)."""

    type: Literal["maskclip"] = Field("maskclip", description="each patch attends to itself; residual and MLP stay")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:maskclip"


class MaskClipBare(LastBlockRule):
    """Each patch attends to itself, without residual and MLP: what later papers' tables often call MaskCLIP."""

    type: Literal["maskclip_bare"] = Field(
        "maskclip_bare", description="each patch attends to itself, without residual and MLP"
    )
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:maskclip_bare"


class Similarity(LastBlockRule):
    """Base of the rules whose attention is between queries, or between keys."""

    rope: bool = Field(True, description="keep rotary positions in the similarities, where the encoder has them")


class Sclip(Similarity):
    """The sum of two attentions, queries to queries and keys to keys; residual and MLP stay (arXiv:2312.01597)."""

    type: Literal["sclip"] = Field("sclip", description="queries to queries and keys to keys; residual and MLP stay")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:sclip"


class ClearClip(Similarity):
    """Attention of queries to queries, without residual and MLP (arXiv:2407.12442)."""

    type: Literal["clearclip"] = Field("clearclip", description="queries to queries, without residual and MLP")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:clearclip"


class NaClip(Similarity):
    """Attention of keys to keys, raised near each patch, without residual and MLP (arXiv:2404.08181)."""

    type: Literal["naclip"] = Field("naclip", description="keys to keys, raised near each patch")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:naclip"

    sigma: float = Field(5.0, gt=0, description="width of the neighbourhood, in patches")


class ProxyClip(LastBlockRule):
    """Attention by the similarity of another encoder's patches, without residual and MLP (arXiv:2408.04883)."""

    type: Literal["proxyclip"] = Field("proxyclip", description="by the similarity of another encoder's patches")
    work: ClassVar[str] = "vfm.eval.open_segmentation.rules:proxyclip"

    encoder: Ref[VisionCheckpoint | ClipCheckpoint] = Field(description="the other encoder, such as one of eva.train")
    layer: int = Field(-1, description="its block whose tokens are compared; -1: the last")
    enlarge: float = Field(1.0, gt=0, description="factor by which windows are enlarged for it, for a finer grid")
    beta: float = Field(1.2, ge=0, description="similarities below so many times their mean get no attention")
    gamma: float = Field(3.0, gt=0, description="factor of what is left, before the softmax")
