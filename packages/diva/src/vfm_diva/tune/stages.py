"""Configurations of the DIVA stages. The code that does the work is imported when a stage runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    AllWeights,
    ClipPostTraining,
    Config,
    FrozenWeights,
    GeneratorCheckpoint,
    Optimizer,
    Ref,
    SampleCache,
    Trained,
)
from vfm_diva.generator.stages import CropSettings
from vfm_diva.parts.loss_parts import DenoisingLoss, Loss
from vfm_diva.parts.parts import (
    Adapter,
    Anchor,
    Condition,
    CosineAnchor,
    Embedding,
    LogitNormal,
    NoAdapter,
    Timesteps,
    check_timesteps,
)
from vfm_diva.parts.presets import Preset, with_preset


class Prompt(Config):
    """Constant prompt of a text-to-image model, and its combination with the image tokens."""

    text: str = Field("a photo of a .", description="text of the prompt, if its text states are used")
    combine: Literal["replace", "add", "concatenate", "broadcast"] = Field(
        "replace",
        description="combination of image tokens and the prompt's text states (broadcast: one token to each state)",
    )


Control = Literal["shuffled", "random_prior", "anchor_only"]


class Feedback(Config):
    """Settings for tuning by a generator's feedback.

    They have the condition, the adapter, the trained weights and the anchor.
    """

    condition: Condition = Field(Embedding(), description="tokens of an image that condition the generator")
    prompt: Prompt = Field(Prompt(), description="constant prompt besides the image tokens")
    adapter: Adapter = Field(NoAdapter(), description="map from the tokens to the generator's context")
    image_size: int | None = Field(
        None, ge=8, description="side of the denoised images, in pixels; default: the generator's own"
    )
    sample_latents: bool = Field(
        False, description="sample the VAE's latents, as GenHancer's and DCR's codes do; false: take their mean"
    )
    trained: Trained = Field(AllWeights(), description="weights of the vision tower that are trained")
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

    moved: ClassVar[Mapping[str, str]] = {"update": "trained"}

    @model_validator(mode="after")
    def _loss_trains_weights(self) -> Feedback:
        if isinstance(self.trained, FrozenWeights):
            raise ValueError("trained: frozen leaves nothing to tune: expected all, last_blocks or lora")
        if self.anchor.compares == "weights" and not self.trained.in_place:
            raise ValueError(
                f"anchor: {self.anchor.type} compares the tower's own weights, which {self.trained.type} does not"
                " train; choose another anchor"
            )
        if self.anchor.compares == "nothing" and self.control == "anchor_only":
            raise ValueError("control: anchor_only needs an anchor, got anchor: none")
        return self


class DivaTune(Feedback, ClipPostTraining):
    """Improve a CLIP model's vision tower: a frozen diffusion model must denoise each image from its embedding.

    Only images are needed. The text tower and the generator do not change. Source: DIVA (arXiv:2407.20171).
    """

    kind: Literal["diva.tune"] = "diva.tune"
    version: ClassVar[int] = 3
    preset: Preset = Field(
        "recommended",
        description="source of all settings that the recipe does not set: recommended for pretrained generators,"
        " toy-prior for a small diva.prior, or the settings of a method's released code",
    )
    generator: Ref[GeneratorCheckpoint] = Field(description="a diva.prior, or a pretrained model (models.generator)")
    latents: Ref[SampleCache] | None = Field(
        None, description="cached latents and crops of the images, made by diva.latents: the VAE is not run"
    )
    augmentation: CropSettings = Field(CropSettings(), description="random crops of the images")
    num_timesteps: int = Field(2, ge=1, description="times at which each image is denoised per step, in one pass")
    timesteps: Timesteps = Field(LogitNormal(mean=1.5), description="times at which images are noised")
    lr: float = Field(1e-4, ge=0, description="peak learning rate")
    optimizer: Optimizer = Field(AdamW(weight_decay=0.0, grad_clip_norm=1.0), description="optimizer and its settings")

    moved: ClassVar[Mapping[str, str]] = {**ClipPostTraining.moved, **Feedback.moved}
    work: ClassVar[str] = "vfm_diva.tune.tune:tune_clip"
    checks: ClassVar[str] = "vfm_diva.tune.tune:check_tune"
    costs: ClassVar[str] = "vfm_diva.tune.estimate:diva_tune_cost"
    can_shard: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, settings: Any) -> Any:
        return with_preset(settings) if isinstance(settings, Mapping) else settings

    @model_validator(mode="after")
    def _consistent(self) -> DivaTune:
        check_timesteps(self.timesteps, self.num_timesteps)
        if self.runtime.parallel == "fsdp" and self.anchor.compares == "weights":
            raise ValueError(f"anchor: {self.anchor.type} compares whole weights: set runtime.parallel: ddp")
        if self.latents and self.augmentation != CropSettings():
            raise ValueError(f"{self.latents!r} determines the crops: set augmentation there")
        if self.latents and self.sample_latents:
            raise ValueError(f"sample_latents: {self.latents!r} has the mean of the latents; set it to false")
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
