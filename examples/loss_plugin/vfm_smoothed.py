"""A loss of your own for `clip.train`. Defining its configuration adds it to the choices; no torch is imported here."""

from typing import ClassVar, Literal

from pydantic import Field

from vfm_clip import ClipLoss


class SmoothedInfoNce(ClipLoss):
    """InfoNCE with label smoothing."""

    type: Literal["smoothed"] = "smoothed"
    work: ClassVar[str] = "vfm_smoothed_loss:SmoothedLoss"
    smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread evenly over all pairs")
