"""The stage `diva.prior`: a small diffusion model over a CLIP's joint space."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ChoiceDataset, ClipCheckpoint, GeneratorCheckpoint, PairDataset, SampleCache
from vfm.interfaces import Training
from vfm.stage import Context, Preflight, Ref
from vfm_diva.timesteps import AnyTimesteps, LogitNormal

if TYPE_CHECKING:
    from vfm.models.clip import ClipModel
    from vfm.panels import TablePanel
    from vfm_diva.generator import Generator
    from vfm_diva.prior_task import PriorTask
    from vfm_diva.samples import MakeConditioned, MakeNoisy


class DivaPrior(Training):
    """Trains a small text-to-image diffusion model, conditioned on the joint space of a frozen CLIP model.

    Text embeddings, image embeddings or both condition it (un-CLIP, arXiv:2204.06125), through a learned linear map to
    a few context tokens; or the text tower's states of each token do, as in text-to-image models, to which `diva.tune`
    needs an adapter. What the prior does not feel in its condition, `diva.tune` cannot teach.
    """

    kind: Literal["diva.prior"] = "diva.prior"
    version: ClassVar[int] = 3  # since `vae` says whose latents, `latents` which were kept
    clip: Ref[ClipCheckpoint] = Field(description="the CLIP model whose joint space conditions the prior")
    data: Ref[PairDataset] = Field(description="the pairs to learn from")
    vae: Ref[GeneratorCheckpoint] | None = Field(
        None, description="train in the latents of this generator's VAE; default: in pixels"
    )
    latents: Ref[SampleCache] | None = Field(
        None, description="those latents and their crops, kept by diva.latents: the VAE is not run"
    )
    choices: Ref[ChoiceDataset] | None = Field(
        None,
        description="pairs on which to see how much its loss rises by the other picture's statement; not trained on",
    )
    language: str | None = Field(None, description="which captions; default: the data's first language")
    image_size: int = Field(16, ge=8, description="side of the pictures that are generated, in pixels")
    condition: Literal["text", "image", "both", "text_states"] = Field(
        "both", description="embeddings that condition it in training; text_states: a caption's tokens instead"
    )
    text_share: float = Field(0.5, gt=0, lt=1, description="samples told their caption, where the condition is both")
    condition_noise: float = Field(
        0.4, ge=0, description="noise on the embedding in training, relative to its root mean square"
    )
    empty_share: float = Field(0.08, ge=0, lt=1, description="samples that are trained without their condition")
    num_tokens: int = Field(4, ge=1, description="context tokens that the embedding is mapped to")
    condition_width: int = Field(
        64, ge=1, description="channels of the context tokens; text_states are as wide as the text tower"
    )
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
        if self.choices and self.condition == "image":
            raise ValueError("choices are told in words; condition: image was told none")
        if self.attention_levels > levels:
            raise ValueError(f"attention_levels {self.attention_levels} is more than the {levels} levels of the UNet")
        if self.latents and not self.vae:
            raise ValueError("latents are of a VAE: give vae as well, to see what is drawn")
        if self.vae is None and self.image_size % 2 ** (levels - 1):
            raise ValueError(f"image_size {self.image_size} cannot be halved {levels - 1} times, as the UNet does")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The captions' language is there, the CLIP model can be read, the VAE fits the size."""
        data, clip = ctx.artifact(self.data), ctx.artifact(self.clip)
        if data:
            data.check_languages([self.language], self.data)
        vae = ctx.artifact(self.vae) if self.vae else None
        latents = ctx.artifact(self.latents) if self.latents else None
        if clip and (vae or self.vae is None):
            import torch

            from vfm.models.clip import blueprint
            from vfm_diva.latents import check_latents

            with torch.device("meta"):  # shapes without weights: a giant costs nothing
                generator = self._generator(blueprint(clip), vae, weights=False)
            if latents:
                check_latents(latents, data, generator.noise_shape)

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
        data = TrainingData.of(self, open_dataset(pairs), self._make(ctx, task, language))
        measure(task, data, with_gap=self.condition in ("text", "both"))
        fit(task, data, self, ctx, self.runtime)
        if is_main():
            ctx.panel(felt_condition(task, data))
            ctx.panel(drawn_from_captions(task, data, language, ctx.directory))
            if self.choices:
                ctx.panel(self._wrong_words(task, ctx.load(self.choices)))
        return task.export(ctx.directory)

    def _wrong_words(self, task: PriorTask, choices: ChoiceDataset) -> TablePanel:
        from vfm.data.choices import load_choices
        from vfm_diva.wrong_words import NUM_TIMES, wrong_words

        return wrong_words(task, load_choices(choices), self._noisy(task.generator, NUM_TIMES), seed=self.seed)

    def _generator(self, clip: ClipModel, vae: GeneratorCheckpoint | None, *, weights: bool = True) -> Generator:
        from vfm_diva.generator import build_generator
        from vfm_diva.space import load_latents
        from vfm_diva.text_states import states_width

        of_states = self.condition == "text_states"
        return build_generator(
            image_size=self.image_size,
            embed_dim=None if of_states else clip.embed_dim,
            num_tokens=self.num_tokens,
            condition_width=states_width(clip) if of_states else self.condition_width,
            block_out_channels=self.block_out_channels,
            attention_levels=self.attention_levels,
            layers_per_block=self.layers_per_block,
            prediction=self.prediction,
            space=load_latents(vae.path, weights=weights) if vae else None,
            seed=self.seed,
        )

    def _task(self, ctx: Context) -> PriorTask:
        from vfm.models.clip import load_clip
        from vfm_diva.prior_task import PriorTask

        clip = load_clip(ctx.load(self.clip))
        generator = self._generator(clip, ctx.load(self.vae) if self.vae else None)
        if self.grad_checkpointing:
            generator.denoiser.network.enable_gradient_checkpointing()
        return PriorTask(clip, generator, condition_noise=self.condition_noise)

    def _make(self, ctx: Context, task: PriorTask, language: str) -> MakeConditioned:
        from vfm_diva.latents import open_latents
        from vfm_diva.samples import MakeConditioned, MakeViews

        noisy, stored = self._noisy(task.generator, num_times=1), None
        if self.latents:
            cache, data = ctx.load(self.latents), ctx.load(self.data)
            stored, kept = open_latents(cache, data, task.generator, noisy.transform, self.global_batch_size)
            noisy = replace(noisy, transform=kept)
        return MakeConditioned(
            MakeViews(noisy, task.clip.preprocess, stored),
            task.clip.tokenizer,
            language,
            embed_dim=task.clip.embed_dim,
            text_share={"image": 0.0, "both": self.text_share}.get(self.condition, 1.0),
            empty_share=self.empty_share,
        )

    def _noisy(self, generator: Generator, num_times: int) -> MakeNoisy:
        from vfm.data.transforms import ImageTransform
        from vfm_diva.samples import MakeNoisy

        transform = ImageTransform(generator.image_size, "crop")
        return MakeNoisy(transform, generator.noise_shape, num_times, **self.timesteps.facts())
