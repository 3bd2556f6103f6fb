"""Configurations of the slots of the DIVA stages, without torch. A plugin can add choices."""

# B batch, T tokens, E width of CLIP's tokens, D width of the joint space, M prompts

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import Part

Weight = Annotated[float, Field(ge=0)]


class Condition(Part):
    """Base class of the choices of image tokens that condition the generator.

    `build(clip)` returns an `ImageCondition` (`vfm_diva.tune.condition`) and reads no weights.
    """


class Embedding(Condition):
    """The image embedding as one token. Every CLIP model has it (un2CLIP)."""

    type: Literal["embedding"] = Field("embedding", description="the image's embedding in the joint space (un2CLIP)")
    work: ClassVar[str] = "vfm_diva.tune.condition:EmbeddingCondition"


class Cls(Condition):
    """The image feature before the projection. It is the class token or the pooled feature (GenHancer)."""

    type: Literal["cls"] = Field("cls", description="the class token, or the pooled feature")
    projected: bool = Field(
        False, description="take it after the projection, as GenHancer's code does for OpenAI's and MetaCLIP's models"
    )
    work: ClassVar[str] = "vfm_diva.tune.condition:ClsCondition"


class Patches(Condition):
    """The image token and a share of the patch tokens, drawn for each image and step without replacement (DIVA)."""

    type: Literal["patches"] = Field("patches", description="the image token and a share of the patch tokens (DIVA)")
    share: float = Field(1.0, ge=0, le=1, description="share of the patches that is drawn")
    count: int | None = Field(None, ge=1, description="number of patches that are drawn, instead of a share")
    replacement: bool = Field(False, description="draw with replacement, as DIVA's code does; needs count")
    in_order: bool = Field(True, description="keep the patches in their order; false: as drawn, as in DIVA's code")
    draw_per_time: bool = Field(False, description="draw anew for each time of an image, as DIVA's code does")
    work: ClassVar[str] = "vfm_diva.tune.condition:PatchCondition"

    @model_validator(mode="after")
    def _one_number(self) -> Patches:
        if self.count is not None and self.share != 1:
            raise ValueError("set either share or count, got both")
        if self.replacement and self.count is None:
            raise ValueError("replacement needs count")
        return self


class PooledPatches(Condition):
    """The image token and the patch tokens, averaged over squares of the grid, row by row."""

    type: Literal["pooled_patches"] = Field(
        "pooled_patches", description="the image token and the patch tokens averaged over squares of the grid"
    )
    window: int = Field(2, ge=1, description="side of a square, in patches (squares at the far edges may be smaller)")
    work: ClassVar[str] = "vfm_diva.tune.condition:PooledPatchCondition"


class RasterPooled(Condition):
    """The image token and the patch tokens, averaged over windows of their sequence (DIVA's code for SigLIP).

    Windows wrap around the rows of the grid, and patches after the last whole window are left out, as in the code.
    """

    type: Literal["raster_pooled"] = Field(
        "raster_pooled", description="the image token and averages of successive patches, across rows (DIVA, SigLIP)"
    )
    window: int = Field(6, ge=1, description="patches per average")
    work: ClassVar[str] = "vfm_diva.tune.condition:RasterPooledCondition"


class Adapter(Part):
    """Map from CLIP's tokens to the context of a generator that was not trained on them.

    `build(inputs, width=E, embed_dim=D, seed=...)` returns a module from `ImageFeatures` to the `Conditioning` that a
    network with these `NetworkInputs` takes. Subclass `TrainedAdapter`.
    """


class NoAdapter(Adapter):
    """No adapter.

    The generator takes a prior's condition map, un-CLIP's class embedding, or tokens of equal width.
    """

    type: Literal["none"] = Field(
        "none", description="a prior's condition map, un-CLIP's class embedding, or tokens of equal width"
    )


class TrainedAdapter(Adapter):
    """Settings of all adapters with weights.

    The weights begin random. They are trained before the tower, with it, or both.
    """

    lr_scale: float = Field(1.0, ge=0, description="learning rate of the adapter, relative to the tower's")
    first_steps: int = Field(
        0, ge=0, description="steps of a first training of the adapter, with CLIP frozen (GenHancer)"
    )
    first_lr: float = Field(1e-3, ge=0, description="peak learning rate of the first training")
    unit_scale: bool = Field(
        True, description="bring tokens to a root mean square of 1 before the adapter; false: as in DIVA's code"
    )
    joint: bool = Field(True, description="train the adapter with the tower; false: freeze it after the first training")

    @model_validator(mode="after")
    def _trained_at_all(self) -> TrainedAdapter:
        if not self.joint and not self.first_steps:
            raise ValueError("joint: false leaves the adapter random; set first_steps")
        return self


class LinearAdapter(TrainedAdapter):
    """One linear layer, applied to each token (DIVA)."""

    type: Literal["linear"] = Field("linear", description="one linear layer, applied to each token (DIVA)")
    work: ClassVar[str] = "vfm_diva.tune.adapter:build_linear"


class MlpAdapter(TrainedAdapter):
    """Layer norm, linear layer, GELU, linear layer (GenHancer)."""

    type: Literal["mlp"] = Field("mlp", description="layer norm, linear layer, GELU, linear layer (GenHancer)")
    work: ClassVar[str] = "vfm_diva.tune.adapter:build_mlp"


class Timesteps(Part):
    """Distribution of diffusion times, from 0 (clean) to 1 (noise only).

    `build(num_times, generator)` draws the times of an image, (num_times,), from a `torch.Generator`.
    """

    shift: float = Field(1.0, gt=0, description="above 1 moves all times towards noise, as large images need")
    spreads_times: ClassVar[bool] = False  # over several times of one image


class Uniform(Timesteps):
    """All times equally likely (DIVA)."""

    type: Literal["uniform"] = Field("uniform", description="all times equally likely (DIVA)")
    work: ClassVar[str] = "vfm_diva.generator.noise:uniform_times"


class LogitNormal(Timesteps):
    """The sigmoid of a normal variable.

    It prefers intermediate times, where the condition matters most (SD 3, GenHancer).
    """

    type: Literal["logit_normal"] = Field(
        "logit_normal", description="the sigmoid of a normal variable (SD 3, GenHancer)"
    )
    mean: float = Field(0.5, description="mean of the normal; above 0 prefers noisy times, where the condition matters")
    std: float = Field(1.2, gt=0, description="standard deviation of the normal")
    work: ClassVar[str] = "vfm_diva.generator.noise:logit_normal_times"


class Stratified(Timesteps):
    """Stratified times: [0, 1) is cut into equal parts, and each time of an image is uniform in one of them."""

    type: Literal["stratified"] = Field(
        "stratified", description="each time of an image is uniform in an equal part of [0, 1)"
    )
    work: ClassVar[str] = "vfm_diva.generator.noise:stratified_times"
    spreads_times: ClassVar[bool] = True


def check_timesteps(timesteps: Timesteps, num_times: int) -> None:
    """Check that a distribution makes sense for images with `num_times` times each.

    Raises:
        ValueError: If it spreads the times of an image, and each image has one.
    """
    if timesteps.spreads_times and num_times == 1:
        raise ValueError(
            f"timesteps: {timesteps.type} spreads the times of one image, and each image has one time here; use uniform"
        )


class Anchor(Part):
    """Loss that keeps the tower near its initial state.

    `build(clip)` returns a function. With `compares` "embeddings" it takes new and old embeddings of unit length,
    (B, D) each, and returns the loss of each image, (B,). With "weights" it takes the tower and its initial state, and
    returns a scalar.
    """

    compares: ClassVar[Literal["nothing", "embeddings", "weights"]] = "embeddings"


class NoAnchor(Anchor):
    """No anchor (DIVA)."""

    type: Literal["none"] = Field("none", description="no anchor (DIVA)")
    compares: ClassVar[Literal["nothing", "embeddings", "weights"]] = "nothing"


class CosineAnchor(Anchor):
    """weight x (1 - cosine to the old embedding)."""

    type: Literal["cosine"] = Field("cosine", description="keeps the direction of each image embedding")
    weight: Weight = Field(0.3, description="weight of 1 - cosine to the old embedding")
    work: ClassVar[str] = "vfm_diva.tune.anchor:cosine_anchor"


class RelationalAnchor(Anchor):
    """weight x the mean squared change of an image's similarities to fixed prompts.

    Changes that do not affect these similarities cost nothing.
    """

    type: Literal["relational"] = Field("relational", description="keeps each image's similarities to fixed prompts")
    prompts: list[str] = Field(min_length=1, description="texts whose similarities to each image stay the same")
    weight: Weight = Field(10.0, description="weight of the mean squared change of the similarities")
    work: ClassVar[str] = "vfm_diva.tune.anchor:relational_anchor"


class L2SpAnchor(Anchor):
    """weight / 2 x the squared distance of the trained weights from their initial values.

    Source: Li, Grandvalet and Davoine 2018, L2-SP (arXiv:1802.01483), equation 2.
    """

    type: Literal["l2_sp"] = Field(
        "l2_sp", description="keeps the weights themselves near their initial values (L2-SP)"
    )
    weight: Weight = Field(0.01, description="weight of half the squared distance from the initial values")
    work: ClassVar[str] = "vfm_diva.tune.anchor:l2_sp_anchor"
    compares: ClassVar[Literal["nothing", "embeddings", "weights"]] = "weights"
