"""Configuration of `diva.prior`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    Artifact,
    ChoiceDataset,
    ClipCheckpoint,
    Config,
    CosineSchedule,
    GeneratorCheckpoint,
    ImageDataset,
    Optimizer,
    Ref,
    SampleCache,
    Schedule,
    Training,
)
from vfm_diva.parts.network_parts import DenoiserNetwork, UNet
from vfm_diva.parts.parts import LogitNormal, Timesteps, check_timesteps


class PriorCondition(Config):
    """Settings for the condition of a prior in training."""

    source: Literal["text", "image", "both", "text_states"] = Field(
        "both", description="embeddings of captions, of images, or both (text_states: a caption's token states instead)"
    )
    text_share: float = Field(
        0.5, gt=0, lt=1, description="share of the samples conditioned on their caption, if the source is both"
    )
    noise: float = Field(0.4, ge=0, description="noise on the embedding, relative to its root mean square")
    dropout: float = Field(0.08, ge=0, lt=1, description="share of the samples trained without a condition")
    num_tokens: int = Field(4, ge=1, description="number of context tokens that the embedding is mapped to")
    width: int = Field(
        64, ge=1, description="width of the context tokens (text_states have the width of the text tower)"
    )
    layers: Literal["linear", "mlp"] = Field(
        "linear", description="layers of the map from an embedding: one linear layer, or layer norm and two (GenHancer)"
    )


class DivaPrior(Training):
    """Train a small diffusion model, conditioned on the joint space of a frozen CLIP model.

    Text embeddings, image embeddings or both condition it (un-CLIP, arXiv:2204.06125), through a learned map to a few
    context tokens. Alternatively the text tower's states of each token do, as in text-to-image models. `diva.tune` then
    needs an adapter. With the source `image` no captions are needed. `diva.tune` cannot teach anything that does not
    change the prior's loss.
    """

    costs: ClassVar[str] = "vfm_diva.prior.estimate:diva_prior_cost"

    kind: Literal["diva.prior"] = "diva.prior"
    version: ClassVar[int] = 3
    clip: Ref[ClipCheckpoint] = Field(description="CLIP model whose joint space conditions the prior")
    data: Ref[ImageDataset] = Field(description="training pairs, or images alone with condition.source: image")
    vae: Ref[GeneratorCheckpoint] | None = Field(
        None, description="generator whose VAE's latents are denoised, by default pixels are"
    )
    latents: Ref[SampleCache] | None = Field(
        None, description="cached latents and crops, made by diva.latents: the VAE is not run"
    )
    sample_latents: bool = Field(
        False, description="sample the VAE's latents, as GenHancer's code does; false: take their mean"
    )
    choices: Ref[ChoiceDataset] | None = Field(
        None,
        description="pairs on which to report how much the loss rises with the other image's statement, never trained"
        " on",
    )
    language: str | None = Field(None, description="language of the captions; default: the data's first language")
    image_size: int = Field(16, ge=8, description="side of the generated images, in pixels")
    condition: PriorCondition = Field(PriorCondition(), description="condition of the prior in training")
    denoiser: DenoiserNetwork = Field(UNet(), description="network of the prior")
    prediction: Literal["epsilon", "v", "flow"] = Field(
        "v", description="target of the network: noise, velocity, or the velocity of the straight path to noise"
    )
    timesteps: Timesteps = Field(LogitNormal(), description="times at which images are noised, one for each image")
    ema_decay: float | None = Field(
        0.99, gt=0, lt=1, description="decay of an average of the weights, which is exported; null: no average"
    )
    lr: float = Field(2e-3, ge=0, description="peak learning rate")
    optimizer: Optimizer = Field(AdamW(weight_decay=0.0, grad_clip_norm=1.0), description="optimizer and its settings")
    schedule: Schedule = Field(CosineSchedule(warmup_steps=20), description="learning rate over the steps")

    makes: ClassVar[type[Artifact]] = GeneratorCheckpoint
    work: ClassVar[str] = "vfm_diva.prior.prior:train_prior"
    checks: ClassVar[str] = "vfm_diva.prior.prior:check_prior"
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
        if self.latents and self.sample_latents:
            raise ValueError(f"sample_latents: {self.latents!r} has the mean of the latents; set it to false")
        if self.vae is None and self.image_size % self.denoiser.multiple:
            raise ValueError(
                f"image_size must be a multiple of {self.denoiser.multiple} for this denoiser, got {self.image_size}"
            )
        return self
