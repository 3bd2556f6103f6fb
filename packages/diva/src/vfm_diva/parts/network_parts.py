"""Configurations of the networks that a prior can train, and of the map that conditions them, without torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import Part


class DenoiserNetwork(Part):
    """Base class of the networks that a prior trains.

    `build(sample_size=h, channels=C, context_width=W)` returns a model of diffusers with random weights, of a class
    listed in `vfm_diva.generator.networks.NETWORKS`.
    """

    takes_vector: ClassVar[bool] = False  # in addition to the context tokens

    @property
    def multiple(self) -> int:
        """Number that the sides of a denoised sample must be multiples of."""
        return 1


class UNet(DenoiserNetwork):
    """A UNet whose first levels only convolve and whose last levels also attend to the condition."""

    type: Literal["unet"] = Field("unet", description="a UNet with cross-attention in its last levels")
    block_out_channels: tuple[int, ...] = Field(
        (16, 32, 64), min_length=1, description="channels of the levels, multiples of 8"
    )
    attention_levels: int = Field(1, ge=1, description="number of last levels that attend to the condition")
    layers_per_block: int = Field(1, ge=1, description="residual blocks per level")
    work: ClassVar[str] = "vfm_diva.generator.networks:build_unet"

    @property
    def multiple(self) -> int:
        """Number that the sides of a denoised sample must be multiples of: each level but the last halves them."""
        return 1 << (len(self.block_out_channels) - 1)

    @model_validator(mode="after")
    def _levels_fit(self) -> UNet:
        wrong = [width for width in self.block_out_channels if width % 8]
        if wrong:
            raise ValueError(f"block_out_channels must be multiples of 8, got {wrong[0]}")
        if self.attention_levels > len(self.block_out_channels):
            raise ValueError(
                f"attention_levels must be at most the number of levels, {len(self.block_out_channels)}; "
                f"got {self.attention_levels}"
            )
        return self


class Mlp(DenoiserNetwork):
    """Linear layers on all pixels of a small image. Ten times as fast as a UNet at 16 pixels on a CPU."""

    type: Literal["mlp"] = Field("mlp", description="linear layers on all pixels, for images of about 16 pixels")
    width: int = Field(512, ge=1, description="width of the hidden layers")
    num_blocks: int = Field(2, ge=1, description="residual blocks")
    work: ClassVar[str] = "vfm_diva.generator.networks:build_mlp"


class FlowTransformer(DenoiserNetwork):
    """A transformer as in Flux.

    Image and context tokens pass double blocks, then single blocks, conditioned on a vector. GenHancer's lightweight
    denoiser has 2 double and 4 single blocks of 24 heads of 128 channels, 1.3 billion weights, and is trained from
    scratch on images alone.

    Source: Ma et al. 2025, GenHancer (arXiv:2503.19480), section 3.
    """

    type: Literal["flow_transformer"] = Field(
        "flow_transformer", description="a transformer as in Flux, with a vector besides the context (GenHancer)"
    )
    double_blocks: int = Field(2, ge=1, description="blocks with separate weights for image and context")
    single_blocks: int = Field(4, ge=0, description="blocks with the same weights for both, after the double ones")
    num_heads: int = Field(4, ge=1, description="attention heads of each block (GenHancer: 24)")
    head_width: int = Field(16, ge=8, multiple_of=8, description="channels of a head (GenHancer: 128)")
    vector_width: int = Field(64, ge=1, description="width of the vector that modulates the blocks (GenHancer: 768)")
    work: ClassVar[str] = "vfm_diva.generator.networks:build_flow_transformer"
    takes_vector: ClassVar[bool] = True

    @property
    def multiple(self) -> int:
        """Number that the sides of a denoised sample must be multiples of: a token is a square of 2 x 2."""
        return 2

    @property
    def rotary_widths(self) -> tuple[int, int, int]:
        """Channels of a head that rotate with the index, the row and the column of a token, as Flux divides 128."""
        side = 2 * (7 * self.head_width // 32)
        return self.head_width - 2 * side, side, side
