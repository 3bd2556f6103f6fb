"""The stages `diva.prior` (a small diffusion model over a CLIP's joint space) and `diva.tune` (feedback through it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint, ImageDataset, PairDataset
from vfm.config import Config, UserError
from vfm.interfaces import ClipPostTraining, Training
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from vfm.data.loader import Make, TrainingData
    from vfm_diva.generator import Generator
    from vfm_diva.prior_task import PriorTask
    from vfm_diva.samples import MakeConditioned
    from vfm_diva.tune_task import TuneTask


class Timesteps(Config):
    """At which times of the diffusion pictures are noised; 0 is clean, 1 is noise alone."""

    distribution: Literal["uniform", "logit_normal", "stratified"] = Field(
        "logit_normal", description="uniform (DIVA), sigmoid of a normal (GenHancer), or uniform in equal parts"
    )
    mean: float = Field(0.5, description="of the normal; above 0 prefers noisy times, where the condition matters")
    std: float = Field(1.2, gt=0, description="of the normal")
    shift: float = Field(1.0, gt=0, description="above 1 moves all times towards noise, as large pictures need")


class DivaPrior(Training):
    """Trains a small text-to-image diffusion model, conditioned on the joint space of a frozen CLIP model.

    Text embeddings, image embeddings or both condition it (un-CLIP, arXiv:2204.06125), through a learned linear map to
    a few context tokens. What the prior does not feel in its condition, `diva.tune` cannot teach.
    """

    kind: Literal["diva.prior"] = "diva.prior"
    clip: Ref[ClipCheckpoint] = Field(description="the CLIP model whose joint space conditions the prior")
    data: Ref[PairDataset]
    latents: Ref[GeneratorCheckpoint] | None = Field(
        None, description="train in the latents of this generator's VAE; default: in pixels"
    )
    language: str | None = Field(None, description="which captions; default: the data's first language")
    image_size: int = Field(16, ge=8, description="side of the pictures that are generated, in pixels")
    condition: Literal["text", "image", "both"] = Field("both", description="embeddings that condition it in training")
    condition_noise: float = Field(
        0.4, ge=0, description="noise on the embedding in training, relative to its root mean square"
    )
    empty_share: float = Field(0.08, ge=0, lt=1, description="samples that are trained without their condition")
    num_tokens: int = Field(4, ge=1, description="context tokens that the embedding is mapped to")
    condition_width: int = Field(64, ge=1, description="channels of the context tokens")
    block_out_channels: tuple[int, ...] = Field(
        (16, 32, 64), min_length=1, description="channels of the UNet's levels, multiples of 8; the last ones attend"
    )
    attention_levels: int = Field(1, ge=1, description="how many of the last levels attend to the condition")
    layers_per_block: int = Field(1, ge=1)
    prediction: Literal["epsilon", "v", "flow"] = "v"
    timesteps: Timesteps = Timesteps()
    ema_decay: float | None = Field(0.99, gt=0, lt=1)
    lr: float = Field(2e-3, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(20, ge=0)
    grad_clip_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _unet_fits(self) -> DivaPrior:
        levels = len(self.block_out_channels)
        if odd := [width for width in self.block_out_channels if width % 8]:
            raise ValueError(f"block_out_channels must be multiples of 8; {odd[0]} is not")
        if self.attention_levels > levels:
            raise ValueError(f"attention_levels {self.attention_levels} is more than the {levels} levels of the UNet")
        if self.latents is None and self.image_size % 2 ** (levels - 1):
            raise ValueError(f"image_size {self.image_size} cannot be halved {levels - 1} times, as the UNet does")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The captions' language is there, the CLIP model can be read, the VAE fits the size."""
        data, clip = ctx.artifact(self.data), ctx.artifact(self.clip)
        if data and self.language and self.language not in data.languages:
            raise UserError(f"language {self.language!r} is not in '{self.data}'; it has {', '.join(data.languages)}")
        latents = ctx.artifact(self.latents) if self.latents else None
        if clip and (latents or self.latents is None):
            self._generator(clip, latents)

    def run(self, ctx: Context) -> GeneratorCheckpoint:
        """Trains the prior, and shows what it draws and how much it feels its condition."""
        from vfm.data.source import open_dataset
        from vfm.train import fit, is_main
        from vfm_diva.pictures import drawn_from_captions, felt_condition
        from vfm_diva.prior_task import measure

        pairs = ctx.load(self.data)
        task = self._task(ctx)
        source = open_dataset(pairs)
        make = self._make(task, self.language or pairs.languages[0])
        measure(task, source, make, with_gap=self.condition != "image")
        fit(task, _training_data(self, pairs, make), self, ctx, self.runtime)
        if is_main():
            ctx.panel(felt_condition(task, source, make))
            ctx.panel(drawn_from_captions(task, source, make, ctx.directory))
        return task.export(ctx.directory)

    def _generator(self, clip: ClipCheckpoint, latents: GeneratorCheckpoint | None) -> Generator:
        from vfm_diva.generator import build_generator

        return build_generator(
            image_size=self.image_size,
            embed_dim=clip.embed_dim,
            num_tokens=self.num_tokens,
            condition_width=self.condition_width,
            block_out_channels=self.block_out_channels,
            attention_levels=self.attention_levels,
            layers_per_block=self.layers_per_block,
            prediction=self.prediction,
            vae_folder=latents.path / "vae" if latents else None,
            seed=self.seed,
        )

    def _task(self, ctx: Context) -> PriorTask:
        from vfm.models.clip import load_clip
        from vfm_diva.prior_task import PriorTask

        clip = ctx.load(self.clip)
        generator = self._generator(clip, ctx.load(self.latents) if self.latents else None)
        if self.grad_checkpointing:
            generator.denoiser.unet.enable_gradient_checkpointing()
        return PriorTask(load_clip(clip), generator, condition_noise=self.condition_noise)

    def _make(self, task: PriorTask, language: str) -> MakeConditioned:
        from vfm.data.transforms import ImageTransform
        from vfm_diva.samples import MakeConditioned, MakeNoisy, MakeViews

        generator = task.generator
        transform = ImageTransform(generator.image_size, "crop")
        noisy = MakeNoisy(transform, generator.noise_shape, 1, **self.timesteps.model_dump())
        return MakeConditioned(
            MakeViews(noisy, task.clip.preprocess),
            task.clip.tokenizer,
            language,
            embed_dim=task.clip.embed_dim,
            text_share={"text": 1.0, "image": 0.0, "both": 0.5}[self.condition],
            empty_share=self.empty_share,
        )


class DivaTune(ClipPostTraining):
    """Sharpens a CLIP's vision tower: a frozen diffusion model must be able to denoise a picture from its embedding.

    Images only; the text tower and the generator stay as they are. Source: DIVA (arXiv:2407.20171).
    """

    kind: Literal["diva.tune"] = "diva.tune"
    generator: Ref[GeneratorCheckpoint] = Field(description="a diva.prior, or a pretrained one (models.generator)")
    condition: Literal["embedding", "embedding_and_patches"] = Field(
        "embedding", description="what the generator is told: the image's embedding, or its patches' too (DIVA)"
    )
    adapter: Literal["none", "linear"] = Field(
        "none",
        description="none: the generator's own condition map; linear: a new map for every token, trained along, "
        "for a generator that was trained on other text states",
    )
    image_size: int | None = Field(
        None, ge=8, description="side of the pictures that are denoised, in pixels; default: the generator's own"
    )
    num_timesteps: int = Field(2, ge=1, description="times at which each image is denoised in a step, in one pass")
    timesteps: Timesteps = Timesteps(mean=1.5)
    anchor: Literal["none", "cosine", "similarity"] = Field(
        "cosine",
        description="what keeps the tower near its old self: the embedding's direction, or its similarities to "
        "anchor_prompts",
    )
    anchor_weight: float | None = Field(None, ge=0, description="default: 0.3 for cosine, 10 for similarity")
    anchor_prompts: list[str] = Field([], description="texts whose similarities to each image are to be kept")
    crop_scale: tuple[float, float] | None = Field((0.9, 1.0), description="share of the area a random crop keeps")
    lr: float = Field(1e-4, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> DivaTune:
        if (self.anchor == "similarity") != bool(self.anchor_prompts):
            raise ValueError("anchor: similarity and anchor_prompts go together; one is given without the other")
        if self.condition == "embedding_and_patches" and self.adapter == "none":
            raise ValueError("condition: embedding_and_patches needs adapter: linear; a condition map takes embeddings")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """Widths fit, and the CLIP model has the tokens that are asked for, where both models are there already."""
        clip, generator = ctx.artifact(self.clip), ctx.artifact(self.generator)
        if clip and generator:
            self._task(clip, generator)

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Trains the vision tower, and shows what the prior draws of its embeddings before and after."""
        from vfm.data.source import open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm.train import fit, is_main
        from vfm_diva.pictures import before_and_after, drawn_from_images
        from vfm_diva.samples import MakeNoisy, MakeViews

        data = ctx.load(self.data)
        task = self._task(ctx.load(self.clip), ctx.load(self.generator))
        transform = ImageTransform(task.image_size, "crop", scale=self.crop_scale, ratio=(0.95, 1.05))
        shape = task.generator.noise_shape_at(task.image_size)
        noisy = MakeNoisy(transform, shape, self.num_timesteps, **self.timesteps.model_dump())
        make = MakeViews(noisy, task.clip.preprocess)
        fit(task, _training_data(self, data, make), self, ctx, self.runtime)
        if is_main():
            source = open_dataset(data)
            ctx.panel(before_and_after(task, source, make))
            ctx.panel(drawn_from_images(task, source, make, ctx.directory))
        return task.export(ctx.directory)

    def _task(self, clip: ClipCheckpoint, generator: GeneratorCheckpoint) -> TuneTask:
        from vfm.models.clip import load_clip
        from vfm_diva.anchor import make_anchor
        from vfm_diva.generator import load_generator
        from vfm_diva.tune_task import TuneTask

        model = load_clip(clip)
        parts = load_generator(generator)
        if self.grad_checkpointing:
            model.module.set_grad_checkpointing()  # type: ignore[operator]
            parts.denoiser.unet.enable_gradient_checkpointing()
        return TuneTask(
            model,
            parts,
            make_anchor(self.anchor, model, weight=self.anchor_weight, prompts=self.anchor_prompts),
            with_patches=self.condition == "embedding_and_patches",
            linear_adapter=self.adapter == "linear",
            image_size=self.image_size,
            seed=self.seed,
        )


def _training_data(plan: Training, data: ImageDataset, make: Make) -> TrainingData:
    from vfm.data.loader import TrainingData
    from vfm.data.source import open_dataset

    return TrainingData.of(plan, open_dataset(data), make)
