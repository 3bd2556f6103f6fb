"""The stage `diva.tune`: a CLIP's vision tower, sharpened by a diffusion model's feedback."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint, ImageDataset, SampleCache
from vfm.config import UserError
from vfm.interfaces import ClipPostTraining
from vfm.stage import Context, Preflight, Ref
from vfm_diva.adapter import NoAdapter
from vfm_diva.crops import Crops
from vfm_diva.feedback import Feedback
from vfm_diva.presets import Preset, with_preset
from vfm_diva.timesteps import AnyTimesteps, LogitNormal

if TYPE_CHECKING:
    from vfm.data.loader import TrainingData
    from vfm_diva.tune_task import TuneTask

TRIED = 8  # pictures of which one must be readable before anything runs


class DivaTune(ClipPostTraining, Feedback, Crops):
    """Sharpens a CLIP's vision tower: a frozen diffusion model must be able to denoise a picture from its embedding.

    Images only; the text tower and the generator stay as they are. Source: DIVA (arXiv:2407.20171).
    """

    kind: Literal["diva.tune"] = "diva.tune"
    version: ClassVar[int] = 3  # since its parts are configurations of their own
    preset: Preset = Field(
        "recommended", description="where settings that are not given come from; diva-paper: the paper's released code"
    )
    generator: Ref[GeneratorCheckpoint] = Field(description="a diva.prior, or a pretrained one (models.generator)")
    latents: Ref[SampleCache] | None = Field(
        None, description="the pictures' latents and crops, kept by diva.latents: the VAE is not run"
    )
    num_timesteps: int = Field(2, ge=1, description="times at which each image is denoised in a step, in one pass")
    timesteps: AnyTimesteps = Field(LogitNormal(mean=1.5), description="at which times pictures are noised")
    lr: float = Field(1e-4, ge=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled; biases, norms and other vectors are spared")
    grad_clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null clips nothing")

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, given: Any) -> Any:
        return with_preset(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _times_fit(self) -> DivaTune:
        self.timesteps.check_for(self.num_timesteps)
        return self

    @model_validator(mode="after")
    def _crops_are_kept(self) -> DivaTune:
        if self.latents and any(getattr(self, name) != field.default for name, field in Crops.model_fields.items()):
            raise ValueError(f"crops are fixed in {self.latents!r}; set crop_scale and crop_ratio where they are made")
        return self

    @model_validator(mode="after")
    def _another_is_there(self) -> DivaTune:
        share = self.global_batch_size // self.runtime.processes
        micro = min(self.micro_batch_size or share, share)
        if self.control == "shuffled" and 1 in (micro, share % micro):
            raise ValueError("control: shuffled tells a picture what another of its pass is like; one is alone here")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """Widths fit, the CLIP model has the tokens that are asked for, and a picture can be read, where all is there.

        Configurations alone are read. Whether the generator was trained over this very model shows in `run`.
        """
        clip, generator, data = ctx.artifact(self.clip), ctx.artifact(self.generator), ctx.artifact(self.data)
        if data:
            check_readable(data)
        if clip and generator:
            from vfm.models.clip import blueprint
            from vfm_diva.fitting import check_fit, needs_prompt
            from vfm_diva.generator import load_generator
            from vfm_diva.latents import check_latents
            from vfm_diva.prompt import check_encoder

            model, parts = blueprint(clip), load_generator(generator, weights=False)
            check_fit(model, parts, self)
            if latents := ctx.artifact(self.latents) if self.latents else None:
                shape = parts.noise_shape_at(self.image_size or parts.image_size)
                check_latents(latents, data, shape)
            if needs_prompt(model, parts, self):
                check_encoder(generator.path)

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Trains the vision tower, and shows what the prior draws of its embeddings before and after."""
        from vfm.models.clip import why_not_open_clip
        from vfm.train import fit, is_main
        from vfm_diva.control import control_panel
        from vfm_diva.pictures import before_and_after, drawn_from_images

        task = self._task(ctx.load(self.clip), ctx.load(self.generator))
        data = self._data(ctx, task)
        self._train_adapter(ctx, task, data)
        fit(task, data, self, ctx, self.runtime)
        if is_main():
            if self.control:
                ctx.panel(control_panel(self.control))
            at_once = max(2, self.micro_batch_size or self.global_batch_size)  # two: one is told what the other is
            ctx.panel(before_and_after(task, data, batch_size=at_once))
            ctx.panel(drawn_from_images(task, data, ctx.directory))
            if why := why_not_open_clip(task.clip):
                ctx.warn(why)
        return task.export(ctx.directory)

    def _train_adapter(self, ctx: Context, task: TuneTask, data: TrainingData) -> None:
        """The first stage, where there is one; its curves lie in the folder `adapter`."""
        from vfm.train import fit

        if isinstance(self.adapter, NoAdapter) or not self.adapter.first_steps:
            return
        changes: dict[str, Any] = {
            "steps": self.adapter.first_steps,
            "samples_seen": None,
            "lr": self.adapter.first_lr,
            "evals": [],
        }
        plan = self.model_copy(update=changes)
        apart = replace(ctx, directory=ctx.directory / "adapter", work=ctx.work / "adapter")
        with task.adapter_alone():
            fit(task, data, plan, apart, self.runtime)

    def _data(self, ctx: Context, task: TuneTask) -> TrainingData:
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm_diva.latents import open_latents
        from vfm_diva.samples import MakeNoisy, MakeViews
        from vfm_diva.tune_samples import MakeDrawn

        images, shape = ctx.load(self.data), task.generator.noise_shape_at(task.image_size)
        transform = ImageTransform(task.image_size, "crop", scale=self.crop_scale, ratio=self.crop_ratio)
        stored = None
        if self.latents:
            cache = ctx.load(self.latents)
            stored, transform = open_latents(cache, images, task.generator, transform, self.global_batch_size)
        noisy = MakeNoisy(transform, shape, self.num_timesteps, **self.timesteps.facts())
        views, draws = MakeViews(noisy, task.clip.preprocess, stored), self.condition.num_draws(task.clip)
        return TrainingData.of(self, open_dataset(images), MakeDrawn(views, draws) if draws else views)

    def _task(self, clip: ClipCheckpoint, generator: GeneratorCheckpoint) -> TuneTask:
        from vfm.models.clip import load_clip
        from vfm_diva.control import forget_weights
        from vfm_diva.fitting import needs_prompt
        from vfm_diva.generator import load_generator
        from vfm_diva.prompt import encode_prompt
        from vfm_diva.tune_task import TuneTask

        model, parts = load_clip(clip), load_generator(generator)
        if self.control == "random_prior":
            forget_weights(parts, seed=self.seed)
        if self.grad_checkpointing:
            model.module.set_grad_checkpointing()  # type: ignore[operator]
            parts.denoiser.network.enable_gradient_checkpointing()
        prompt = encode_prompt(generator.path, self.prompt) if needs_prompt(model, parts, self) else None
        return TuneTask(model, parts, self, prompt=prompt, seed=self.seed)


def check_readable(data: ImageDataset) -> None:
    """Refuses a data set of whose first few pictures not one can be read.

    Raises:
        UserError: it names the first.
    """
    from vfm.data.images import decode_image
    from vfm.data.sample import BadSample
    from vfm.data.source import open_dataset

    source = open_dataset(data)
    bad: list[str] = []
    for index in range(min(TRIED, len(source))):
        try:
            decode_image(source[index].image, source.where(index))
            return
        except BadSample as error:
            bad.append(f"{error.where} ({error.reason})")
    if bad:
        raise UserError(f"{data.path}: none of the first {len(bad)} pictures can be read: {bad[0]}")
