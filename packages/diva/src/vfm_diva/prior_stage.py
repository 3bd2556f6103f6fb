"""The stage `diva.prior`: a small diffusion model over a CLIP's joint space."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint, PairDataset
from vfm.interfaces import Training
from vfm.stage import Context, Preflight, Ref
from vfm_diva.timesteps import AnyTimesteps, LogitNormal

if TYPE_CHECKING:
    from vfm_diva.generator import Generator
    from vfm_diva.prior_task import PriorTask
    from vfm_diva.samples import MakeConditioned


class DivaPrior(Training):
    """Trains a small text-to-image diffusion model, conditioned on the joint space of a frozen CLIP model.

    Text embeddings, image embeddings or both condition it (un-CLIP, arXiv:2204.06125), through a learned linear map to
    a few context tokens. What the prior does not feel in its condition, `diva.tune` cannot teach.
    """

    kind: Literal["diva.prior"] = "diva.prior"
    version: ClassVar[int] = 2  # since averaged weights forget their random start
    clip: Ref[ClipCheckpoint] = Field(description="the CLIP model whose joint space conditions the prior")
    data: Ref[PairDataset] = Field(description="the pairs to learn from")
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
    layers_per_block: int = Field(1, ge=1, description="residual blocks of each of the UNet's levels")
    prediction: Literal["epsilon", "v", "flow"] = Field(
        "v", description="what the UNet learns: noise, velocity, or the velocity of the straight path to noise"
    )
    timesteps: AnyTimesteps = Field(LogitNormal(), description="at which times pictures are noised, one time each")
    ema_decay: float | None = Field(
        0.99, gt=0, lt=1, description="average the weights; the average is what is exported; null: the last ones are"
    )
    lr: float = Field(2e-3, ge=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled; biases, norms and other vectors are spared")
    warmup_steps: int = Field(20, ge=0, description="steps in which the learning rate rises linearly to lr")
    grad_clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null clips nothing")

    @model_validator(mode="after")
    def _times_fit(self) -> DivaPrior:
        self.timesteps.check_for(num_times=1)
        return self

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
        if data:
            data.check_languages([self.language], self.data)
        latents = ctx.artifact(self.latents) if self.latents else None
        if clip and (latents or self.latents is None):
            import torch

            with torch.device("meta"):  # shapes without weights: a giant costs nothing
                self._generator(clip, latents, weights=False)

    def run(self, ctx: Context) -> GeneratorCheckpoint:
        """Trains the prior, and shows what it draws and how much it feels its condition."""
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.train import fit, is_main, resolve_device
        from vfm_diva.pictures import drawn_from_captions, felt_condition
        from vfm_diva.prior_task import measure

        pairs = ctx.load(self.data)
        language = self.language or pairs.languages[0]
        task = self._task(ctx).to(resolve_device(self.runtime))
        data = TrainingData.of(self, open_dataset(pairs), self._make(task, language))
        measure(task, data, with_gap=self.condition != "image")
        fit(task, data, self, ctx, self.runtime)
        if is_main():
            ctx.panel(felt_condition(task, data))
            ctx.panel(drawn_from_captions(task, data, language, ctx.directory))
        return task.export(ctx.directory)

    def _generator(
        self, clip: ClipCheckpoint, latents: GeneratorCheckpoint | None, *, weights: bool = True
    ) -> Generator:
        from vfm_diva.generator import build_generator
        from vfm_diva.space import load_latents

        return build_generator(
            image_size=self.image_size,
            embed_dim=clip.embed_dim,
            num_tokens=self.num_tokens,
            condition_width=self.condition_width,
            block_out_channels=self.block_out_channels,
            attention_levels=self.attention_levels,
            layers_per_block=self.layers_per_block,
            prediction=self.prediction,
            space=load_latents(latents.path, weights=weights) if latents else None,
            seed=self.seed,
        )

    def _task(self, ctx: Context) -> PriorTask:
        from vfm.models.clip import load_clip
        from vfm_diva.prior_task import PriorTask

        clip = ctx.load(self.clip)
        generator = self._generator(clip, ctx.load(self.latents) if self.latents else None)
        if self.grad_checkpointing:
            generator.denoiser.network.enable_gradient_checkpointing()
        return PriorTask(load_clip(clip), generator, condition_noise=self.condition_noise)

    def _make(self, task: PriorTask, language: str) -> MakeConditioned:
        from vfm.data.transforms import ImageTransform
        from vfm_diva.samples import MakeConditioned, MakeNoisy, MakeViews

        generator = task.generator
        transform = ImageTransform(generator.image_size, "crop")
        noisy = MakeNoisy(transform, generator.noise_shape, 1, **self.timesteps.facts())
        return MakeConditioned(
            MakeViews(noisy, task.clip.preprocess),
            task.clip.tokenizer,
            language,
            embed_dim=task.clip.embed_dim,
            text_share={"text": 1.0, "image": 0.0, "both": 0.5}[self.condition],
            empty_share=self.empty_share,
        )
