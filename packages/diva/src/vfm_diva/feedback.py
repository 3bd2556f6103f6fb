"""How a tower is tuned by a generator's feedback: the parts of `diva.tune` that have to do with models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vfm.config import Config
from vfm_diva.adapter import AnyAdapter, NoAdapter
from vfm_diva.anchor import AnyAnchor, CosineAnchor, L2SpAnchor, NoAnchor
from vfm_diva.condition import AnyCondition, Embedding
from vfm_diva.control import Control
from vfm_diva.update import AnyUpdate, Lora, WholeTower


class Feedback(Config):
    """What the generator is told of an image, what is trained, and what holds it."""

    condition: AnyCondition = Field(Embedding(), description="what of an image the generator is told")
    prompt: str = Field("a photo of a .", description="the constant prompt, where its text states are used")
    combine: Literal["replace", "add", "concatenate"] = Field(
        "replace", description="how the image's tokens and the prompt's text states come together"
    )
    adapter: AnyAdapter = Field(NoAdapter(), description="what brings the tokens to the width the generator attends to")
    image_size: int | None = Field(
        None, ge=8, description="side of the pictures that are denoised, in pixels; default: the generator's own"
    )
    update: AnyUpdate = Field(WholeTower(), description="which of the vision tower's weights are trained")
    anchor: AnyAnchor = Field(CosineAnchor(), description="what keeps the tower near its old self")
    control: Control | None = Field(
        None,
        description="no method, but what a gain is held against: shuffled tells each picture another's tokens,"
        " random_prior asks a denoiser with random weights, anchor_only leaves the denoising error out of the loss",
    )
    max_loss_rise: float | None = Field(
        2.0, gt=1, description="stop where the denoising loss is so many times that of the first steps; null: go on"
    )

    @model_validator(mode="after")
    def _weights_are_trained(self) -> Feedback:
        if isinstance(self.anchor, L2SpAnchor) and isinstance(self.update, Lora):
            raise ValueError("anchor: l2_sp holds the weights, which lora does not train; choose another anchor")
        if isinstance(self.anchor, NoAnchor) and self.control == "anchor_only":
            raise ValueError("control: anchor_only leaves nothing to train by without an anchor")
        return self
