"""What brings CLIP's tokens to the width that a generator attends to, where they were not made for one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from vfm.config import Config

if TYPE_CHECKING:
    from vfm_diva.adapter_net import AdapterNet
    from vfm_diva.networks import Wants


class NoAdapter(Config):
    """The generator's own way with CLIP: a prior's condition map, un-CLIP's class embedding, or tokens as they are."""

    type: Literal["none"] = Field(
        "none", description="the generator's own way with CLIP: a prior's map, un-CLIP's class embedding, equal widths"
    )


class _Adapter(Config):
    """Random at first; trained with the tower, before it, or both."""

    lr_scale: float = Field(1.0, ge=0, description="its learning rate, relative to the tower's")
    first_steps: int = Field(
        0, ge=0, description="steps of a first stage in which it alone is trained and CLIP is frozen (GenHancer)"
    )
    first_lr: float = Field(1e-3, ge=0, description="peak learning rate of the first stage")
    joint: bool = Field(True, description="train it along with the tower; false: keep what the first stage made")

    @model_validator(mode="after")
    def _trained_at_all(self) -> _Adapter:
        if not self.joint and not self.first_steps:
            raise ValueError("joint: false leaves the adapter random; give first_steps")
        return self

    def build(self, wants: Wants, *, width: int, embed_dim: int, seed: int) -> AdapterNet:
        """The layers, random from the seed, from tokens of `width` and embeddings to what a generator wants."""
        from vfm_diva.adapter_net import build_adapter

        kind: Literal["linear", "mlp"] = self.type  # type: ignore[attr-defined]
        return build_adapter(kind, wants, width=width, embed_dim=embed_dim, seed=seed)


class LinearAdapter(_Adapter):
    """One linear layer for every token (DIVA)."""

    type: Literal["linear"] = Field("linear", description="one linear layer for every token (DIVA)")


class MlpAdapter(_Adapter):
    """Norm, linear layer, GELU, linear layer (GenHancer)."""

    type: Literal["mlp"] = Field("mlp", description="norm, linear layer, GELU, linear layer (GenHancer)")


AnyAdapter = Annotated[NoAdapter | LinearAdapter | MlpAdapter, Field(discriminator="type")]
