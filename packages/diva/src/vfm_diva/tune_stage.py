"""The stage `diva.tune`: a CLIP's vision tower, sharpened by a diffusion model's feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint
from vfm.interfaces import ClipPostTraining, CropScale
from vfm.stage import Context, Preflight, Ref
from vfm_diva.timesteps import Timesteps

if TYPE_CHECKING:
    from vfm_diva.tune_task import TuneTask


class DivaTune(ClipPostTraining):
    """Sharpens a CLIP's vision tower: a frozen diffusion model must be able to denoise a picture from its embedding.

    Images only; the text tower and the generator stay as they are. Source: DIVA (arXiv:2407.20171).
    """

    kind: Literal["diva.tune"] = "diva.tune"
    version: ClassVar[int] = 2  # since the order of shards and that within the first window are two draws
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
    timesteps: Timesteps = Field(Timesteps(mean=1.5), description="at which times pictures are noised")
    anchor: Literal["none", "cosine", "similarity"] = Field(
        "cosine",
        description="what keeps the tower near its old self: the embedding's direction, or its similarities to "
        "anchor_prompts",
    )
    anchor_weight: float | None = Field(None, ge=0, description="default: 0.3 for cosine, 10 for similarity")
    anchor_prompts: list[str] = Field([], description="texts whose similarities to each image are to be kept")
    crop_scale: CropScale | None = Field(
        (0.9, 1.0), description="share of the area a random crop keeps; null: as in evaluation, nothing random"
    )
    lr: float = Field(1e-4, ge=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled; biases, norms and other vectors are spared")
    grad_clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null clips nothing")

    @model_validator(mode="after")
    def _consistent(self) -> DivaTune:
        if (self.anchor == "similarity") != bool(self.anchor_prompts):
            raise ValueError("anchor: similarity and anchor_prompts go together; one is given without the other")
        if self.condition == "embedding_and_patches" and self.adapter == "none":
            raise ValueError("condition: embedding_and_patches needs adapter: linear; a condition map takes embeddings")
        self.timesteps.check_for(self.num_timesteps)
        return self

    def preflight(self, ctx: Preflight) -> None:
        """Widths fit, and the CLIP model has the tokens that are asked for, where both models are there already.

        Configurations alone are read. Whether the generator was trained over this very model shows in `run`.
        """
        clip, generator = ctx.artifact(self.clip), ctx.artifact(self.generator)
        if clip and generator:
            from vfm.models.clip import blueprint
            from vfm_diva.generator import load_generator
            from vfm_diva.tune_task import check_fit

            check_fit(blueprint(clip), load_generator(generator, weights=False), **self._how)

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Trains the vision tower, and shows what the prior draws of its embeddings before and after."""
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm.models.clip import why_not_open_clip
        from vfm.train import fit, is_main
        from vfm_diva.pictures import before_and_after, drawn_from_images
        from vfm_diva.samples import MakeNoisy, MakeViews

        task = self._task(ctx.load(self.clip), ctx.load(self.generator))
        transform = ImageTransform(task.image_size, "crop", scale=self.crop_scale, ratio=(0.95, 1.05))
        shape = task.generator.noise_shape_at(task.image_size)
        noisy = MakeNoisy(transform, shape, self.num_timesteps, **self.timesteps.model_dump())
        data = TrainingData.of(self, open_dataset(ctx.load(self.data)), MakeViews(noisy, task.clip.preprocess))
        fit(task, data, self, ctx, self.runtime)
        if is_main():
            ctx.panel(before_and_after(task, data))
            ctx.panel(drawn_from_images(task, data, ctx.directory))
            if why := why_not_open_clip(task.clip):
                ctx.warn(why)
        return task.export(ctx.directory)

    @property
    def _how(self) -> dict[str, Any]:
        return {
            "with_patches": self.condition == "embedding_and_patches",
            "linear_adapter": self.adapter == "linear",
            "image_size": self.image_size,
        }

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
        anchor = make_anchor(self.anchor, model, weight=self.anchor_weight, prompts=self.anchor_prompts)
        return TuneTask(model, parts, anchor, seed=self.seed, **self._how)
