"""The stage `clip.train`: open_clip's parts, any vision tower, the contrastive loss over all processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint
from vfm.interfaces import CropScale
from vfm.stage import Context, Preflight
from vfm_clip.losses import AnyLoss, Distillation, InfoNce
from vfm_clip.tower_training import TowerTraining

if TYPE_CHECKING:
    from vfm.models.clip import ClipModel
    from vfm_clip.task import ClipTask

Chances = Annotated[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]


class ClipTrain(TowerTraining):
    """Trains a CLIP model on pairs: from scratch, from a CLIP checkpoint, or with pre-trained towers."""

    version: ClassVar[int] = 4  # since patch dropout draws on the device

    kind: Literal["clip.train"] = "clip.train"
    language: str | Chances | None = Field(
        None,
        description="which captions, by language or source; several by weight, as {alt: 3, synthetic: 1}; default: the"
        " data's first",
    )
    sampler: Literal["shuffled", "balanced"] = Field(
        "shuffled",
        description="balanced: each epoch draws anew which texts of a curated subset it uses, by their probabilities;"
        " shuffled: every epoch has all samples",
    )
    logit_scale_init: float | None = Field(
        None, ge=1, description="inverse temperature at the start; default: the model's own, 1/0.07 from scratch"
    )
    logit_scale_max: float = Field(100.0, ge=1, description="largest inverse temperature; the smallest is 1")
    lock_logit_scale: bool = Field(False, description="keep the temperature as it starts")
    loss: AnyLoss = Field(InfoNce(), description="what is minimised, over the batch of all processes")
    loss_chunk_size: int | None = Field(
        None, ge=1, description="rows of logits held at once, where all of them do not fit; the result is the same"
    )
    crop_scale: CropScale | None = Field(
        (0.9, 1.0), description="share of the area a random crop keeps; null: as in evaluation, nothing random"
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="narrowest and widest aspect of a random crop")
    optimizer: Literal["adamw", "sgd", "lamb"] = Field(
        "adamw", description="AdamW; LAMB for batches of tens of thousands (EVA-CLIP); SGD with momentum"
    )
    lr: float = Field(5e-4, ge=0, description="at its peak")
    warmup_steps: int = Field(
        100, ge=0, description="steps over which lr rises; without any, features may collapse at once (loss at ln N)"
    )
    weight_decay: float = Field(
        0.2, ge=0, description="for matrices; gains, biases, positions and class tokens have none"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ClipTrain:
        if self.logit_scale_init and self.logit_scale_init > self.logit_scale_max:
            raise ValueError(f"logit_scale_init {self.logit_scale_init:g} is above its max, {self.logit_scale_max:g}")
        if self.sampler == "balanced" and isinstance(self.language, dict):
            raise ValueError("sampler: balanced draws texts by their own probabilities: name one language")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)} must be two aspects, the narrower one first")
        if self.crop_scale is None and "crop_ratio" in self.model_fields_set:
            raise ValueError("crop_ratio is a random crop's, and crop_scale: null asks for none: leave crop_ratio out")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The data suit the batch, the model exists, and its towers take what is to come."""
        from vfm_clip.data import check_datasets, check_makers
        from vfm_clip.preflight import check_towers, find_clip
        from vfm_clip.tokens import check_teacher, check_tokenizer

        check_makers(self, ctx)
        found = {str(each.data): ctx.artifact(each.data) for each in self.portions}
        check_datasets(self, {name: data for name, data in found.items() if data})
        if clip := check_towers(self, ctx):
            check_tokenizer(clip)
            self._task(clip)
            if isinstance(self.loss, Distillation) and (teacher := find_clip(ctx, self.loss.teacher)):
                check_teacher(clip, teacher)

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Builds, trains and saves the model."""
        from vfm.models.clip import why_not_open_clip
        from vfm.train import fit, is_main
        from vfm_clip.data import check_datasets, training_data
        from vfm_clip.diagnosis import Diagnosis
        from vfm_clip.panels import seen_panel

        datasets = {str(each.data): ctx.load(each.data) for each in self.portions}
        check_datasets(self, datasets)
        clip = self._model(ctx)
        task = self._task(clip, self._teacher(ctx, clip))
        data, make = training_data(self, list(datasets.values()), clip)
        if is_main():
            ctx.panel(seen_panel(data, make, ctx.directory))
        fit(task, data, self, replace(ctx, send=Diagnosis(ctx, self)), self.runtime)
        if is_main() and (why := why_not_open_clip(clip)):
            ctx.warn(why)
        return task.export(ctx.directory)

    def _model(self, ctx: Context) -> ClipModel:
        """The model as it starts, with what is locked."""
        import math

        from vfm_clip.start import starting_model

        clip = starting_model(self, ctx)
        parts: Any = clip.module
        self.loss.prepare(clip, ctx.warn)
        if self.logit_scale_init:
            parts.logit_scale.data.fill_(math.log(self.logit_scale_init))
        return clip

    def _teacher(self, ctx: Context, clip: ClipModel) -> ClipModel | None:
        """The model that a distillation learns from."""
        if not isinstance(self.loss, Distillation):
            return None
        from vfm.models.clip import load_clip
        from vfm_clip.tokens import check_teacher

        teacher = load_clip(ctx.load(self.loss.teacher))
        check_teacher(clip, teacher)
        return teacher

    def _task(self, clip: ClipModel, teacher: ClipModel | None = None) -> ClipTask:
        from vfm_clip.task import ClipTask

        return ClipTask(
            clip,
            loss=self.loss,
            teacher=teacher,
            logit_scale_max=self.logit_scale_max,
            train_logit_scale=not self.lock_logit_scale,
            loss_chunk_size=self.loss_chunk_size,
            unmasked_from=self.num_steps - self.unmasked_steps,
            image=self.image_rates,
            text=self.text_rates,
        )
