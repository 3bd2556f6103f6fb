"""The configurations of the DIVA stages. They are light: the work is imported when a stage runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from vfm.plugin import (
    INCIDENTAL,
    AdamW,
    Artifact,
    ChoiceDataset,
    ClipCheckpoint,
    ClipPostTraining,
    Config,
    CosineSchedule,
    CropScale,
    GeneratorCheckpoint,
    ImageDataset,
    Optimizer,
    Ref,
    SampleCache,
    Schedule,
    Seed,
    Stage,
    Training,
    UserError,
)
from vfm_diva.loss_parts import DenoisingLoss, Loss
from vfm_diva.network_parts import DenoiserNetwork, UNet
from vfm_diva.parts import (
    Adapter,
    Anchor,
    Condition,
    CosineAnchor,
    Embedding,
    LogitNormal,
    NoAdapter,
    Timesteps,
    Update,
    WholeTower,
    check_timesteps,
)
from vfm_diva.presets import Preset, with_preset


class Crops(Config):
    """The random crop of an image, which CLIP and the generator both see."""

    crop_scale: CropScale | None = Field(
        (0.9, 1.0), description="share of the area that a random crop keeps; null: no random crop, as in evaluation"
    )
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.95, 1.05), description="smallest and largest aspect ratio of a random crop"
    )

    @model_validator(mode="after")
    def _ascending(self) -> Crops:
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: expected the smaller ratio first, got {list(self.crop_ratio)}")
        return self


def check_random_crops(loss: Loss, crops: Crops | SampleCache, where: str) -> None:
    """Check that crops are random if a loss compares two of them.

    Raises:
        UserError: they are not; it names the setting `where`.
    """
    if loss.needs_view and crops.crop_scale is None:
        raise UserError(
            f"loss: {loss.type} compares two random crops: expected crop_scale such as [0.9, 1.0] in {where}, got null"
        )


class DivaLatents(Stage):
    """Compute a VAE's latents of a dataset once, for later epochs, seeds and models.

    Latents suit every generator with the same VAE. A training with `latents` sees the crops that were cached.
    """

    kind: Literal["diva.latents"] = "diva.latents"
    data: Ref[ImageDataset] = Field(description="images that will be trained on")
    generator: Ref[GeneratorCheckpoint] = Field(description="model with the VAE (models.generator, or a diva.prior)")
    image_size: int | None = Field(
        None, ge=8, description="side of the generator's images, in pixels; default: the generator's own"
    )
    augmentation: Crops = Field(Crops(), description="the cached crops")
    num_crops: int = Field(1, ge=1, description="crops of each image; epochs cycle through them")
    dtype: Literal["fp16", "fp32"] = Field("fp16", description="stored type of the latents")
    micro_batch_size: Annotated[int, INCIDENTAL] = Field(16, ge=1, description="crops per forward pass of the VAE")
    samples_per_shard: int | None = Field(
        None, ge=1, description="samples per file, at most those are lost in a crash; default: about 128 MiB"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="tolerated fraction of samples that cannot be read; above it the stage stops"
    )
    seed: Seed = Field(0, description="of the crops")

    makes: ClassVar[type[Artifact]] = SampleCache
    work: ClassVar[str] = "vfm_diva.latents:cache_latents"
    checks: ClassVar[str] = "vfm_diva.latents:check_cache_latents"


class PriorCondition(Config):
    """Condition of a prior in training."""

    source: Literal["text", "image", "both", "text_states"] = Field(
        "both", description="embeddings of captions, of images, or both; text_states: a caption's token states instead"
    )
    text_share: float = Field(
        0.5, gt=0, lt=1, description="share of the samples conditioned on their caption, if the source is both"
    )
    noise: float = Field(0.4, ge=0, description="noise on the embedding, relative to its root mean square")
    dropout: float = Field(0.08, ge=0, lt=1, description="share of the samples trained without a condition")
    num_tokens: int = Field(4, ge=1, description="number of context tokens that the embedding is mapped to")
    width: int = Field(
        64, ge=1, description="width of the context tokens; text_states have the width of the text tower"
    )
    layers: Literal["linear", "mlp"] = Field(
        "linear", description="of the map from an embedding: one linear layer, or layer norm and two (GenHancer)"
    )


class DivaPrior(Training):
    """Train a small diffusion model, conditioned on the joint space of a frozen CLIP model.

    Text embeddings, image embeddings or both condition it (un-CLIP, arXiv:2204.06125), through a learned map to a few
    context tokens. Alternatively the text tower's states of each token do, as in text-to-image models;
    `diva.tune` then needs an adapter. With the source `image` no captions are needed. `diva.tune` cannot teach what
    does not change the prior's loss.
    """

    costs: ClassVar[str] = "vfm_diva.estimate:diva_prior_cost"

    kind: Literal["diva.prior"] = "diva.prior"
    version: ClassVar[int] = 3
    clip: Ref[ClipCheckpoint] = Field(description="CLIP model whose joint space conditions the prior")
    data: Ref[ImageDataset] = Field(description="training pairs; images alone with condition.source: image")
    vae: Ref[GeneratorCheckpoint] | None = Field(
        None, description="generator whose VAE's latents are denoised; default: pixels are"
    )
    latents: Ref[SampleCache] | None = Field(
        None, description="cached latents and crops, made by diva.latents: the VAE is not run"
    )
    choices: Ref[ChoiceDataset] | None = Field(
        None,
        description="pairs on which to report how much the loss rises with the other image's statement; not trained on",
    )
    language: str | None = Field(None, description="language of the captions; default: the data's first language")
    image_size: int = Field(16, ge=8, description="side of the generated images, in pixels")
    condition: PriorCondition = Field(PriorCondition(), description="what conditions the prior in training")
    denoiser: DenoiserNetwork = Field(UNet(), description="network of the prior")
    prediction: Literal["epsilon", "v", "flow"] = Field(
        "v", description="what the network predicts: noise, velocity, or the velocity of the straight path to noise"
    )
    timesteps: Timesteps = Field(LogitNormal(), description="times at which images are noised, one for each image")
    ema_decay: float | None = Field(
        0.99, gt=0, lt=1, description="decay of an average of the weights, which is exported; null: no average"
    )
    lr: float = Field(2e-3, ge=0, description="peak learning rate")
    optimizer: Optimizer = Field(AdamW(weight_decay=0.0, grad_clip_norm=1.0), description="optimizer and its settings")
    schedule: Schedule = Field(CosineSchedule(warmup_steps=20), description="learning rate over the steps")

    makes: ClassVar[type[Artifact]] = GeneratorCheckpoint
    work: ClassVar[str] = "vfm_diva.prior:train_prior"
    checks: ClassVar[str] = "vfm_diva.prior:check_prior"
    moved: ClassVar[Mapping[str, str]] = {
        **Training.moved,
        "condition_noise": "condition.noise",
        "condition_width": "condition.width",
        "empty_share": "condition.dropout",
    }

    @model_validator(mode="after")
    def _consistent(self) -> DivaPrior:
        check_timesteps(self.timesteps, num_times=1)
        if self.choices and self.condition.source == "image":
            raise ValueError("choices needs a prior conditioned on text, got condition.source: image")
        if self.denoiser.takes_vector and self.condition.source == "text_states":
            raise ValueError(f"denoiser: {self.denoiser.type} takes a vector, which text_states do not have")
        if self.latents and not self.vae:
            raise ValueError("latents needs vae, the generator whose VAE decodes them")
        if self.vae is None and self.image_size % self.denoiser.multiple:
            raise ValueError(
                f"image_size must be a multiple of {self.denoiser.multiple} for this denoiser, got {self.image_size}"
            )
        return self


class Prompt(Config):
    """The constant prompt of a text-to-image model, and its combination with the image tokens."""

    text: str = Field("a photo of a .", description="the prompt, if its text states are used")
    combine: Literal["replace", "add", "concatenate", "broadcast"] = Field(
        "replace",
        description="how image tokens and the prompt's text states are combined; broadcast: one token to each state",
    )


Control = Literal["shuffled", "random_prior", "anchor_only"]


class Feedback(Config):
    """Settings of the tuning by a generator's feedback: condition, adapter, trained weights, anchor."""

    condition: Condition = Field(Embedding(), description="tokens of an image that condition the generator")
    prompt: Prompt = Field(Prompt(), description="constant prompt beside the image tokens")
    adapter: Adapter = Field(NoAdapter(), description="map from the tokens to the generator's context")
    image_size: int | None = Field(
        None, ge=8, description="side of the denoised images, in pixels; default: the generator's own"
    )
    update: Update = Field(WholeTower(), description="weights of the vision tower that are trained")
    loss: Loss = Field(DenoisingLoss(), description="loss on the denoised images")
    anchor: Anchor = Field(CosineAnchor(), description="loss that keeps the tower near its initial state")
    control: Control | None = Field(
        None,
        description="ablation control: shuffled conditions each image on another image's tokens, random_prior uses a"
        " denoiser with random weights, anchor_only omits the denoising loss",
    )
    max_loss_rise: float | None = Field(
        2.0, gt=1, description="stop if the denoising loss rises to this multiple of its initial value; null: never"
    )

    @model_validator(mode="after")
    def _loss_trains_weights(self) -> Feedback:
        if self.anchor.compares == "weights" and not self.update.in_place:
            raise ValueError(
                f"anchor: {self.anchor.type} compares the tower's own weights, which {self.update.type} does not train;"
                " choose another anchor"
            )
        if self.anchor.compares == "nothing" and self.control == "anchor_only":
            raise ValueError("control: anchor_only needs an anchor, got anchor: none")
        return self


class DivaTune(Feedback, ClipPostTraining):
    """Improve a CLIP model's vision tower: a frozen diffusion model must denoise each image from its embedding.

    Only images are needed; the text tower and the generator do not change. Source: DIVA (arXiv:2407.20171).
    """

    kind: Literal["diva.tune"] = "diva.tune"
    version: ClassVar[int] = 3
    preset: Preset = Field(
        "recommended",
        description="source of the settings that are not given: recommended for pretrained generators, toy-prior for a"
        " small diva.prior, or those of a method's released code",
    )
    generator: Ref[GeneratorCheckpoint] = Field(description="a diva.prior, or a pretrained model (models.generator)")
    latents: Ref[SampleCache] | None = Field(
        None, description="cached latents and crops of the images, made by diva.latents: the VAE is not run"
    )
    augmentation: Crops = Field(Crops(), description="random crops of the images")
    num_timesteps: int = Field(2, ge=1, description="times at which each image is denoised per step, in one pass")
    timesteps: Timesteps = Field(LogitNormal(mean=1.5), description="times at which images are noised")
    lr: float = Field(1e-4, ge=0, description="peak learning rate")
    optimizer: Optimizer = Field(AdamW(weight_decay=0.0, grad_clip_norm=1.0), description="optimizer and its settings")

    work: ClassVar[str] = "vfm_diva.tune:tune_clip"
    checks: ClassVar[str] = "vfm_diva.tune:check_tune"
    costs: ClassVar[str] = "vfm_diva.estimate:diva_tune_cost"
    can_shard: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, given: Any) -> Any:
        return with_preset(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _consistent(self) -> DivaTune:
        check_timesteps(self.timesteps, self.num_timesteps)
        if self.runtime.parallel == "fsdp" and self.anchor.compares == "weights":
            raise ValueError(f"anchor: {self.anchor.type} compares whole weights: set runtime.parallel: ddp")
        if self.latents and self.augmentation != Crops():
            raise ValueError(f"the crops are those of {self.latents!r}: set augmentation there")
        check_random_crops(self.loss, self.augmentation, "augmentation")
        share = self.global_batch_size // self.runtime.processes
        micro = min(self.micro_batch_size or share, share)
        fewest = micro and (share % micro or micro)  # images of a forward pass; 0 with more processes than images
        if self.control == "shuffled" and fewest < 2:
            raise ValueError(f"control: shuffled needs at least 2 images per forward pass, got {fewest}")
        if self.loss.compares_images and (self.num_timesteps != 1 or fewest < 2):
            raise ValueError(
                f"loss: {self.loss.type} needs num_timesteps: 1 and at least 2 images per forward pass, got "
                f"{self.num_timesteps} and {fewest}"
            )
        return self
