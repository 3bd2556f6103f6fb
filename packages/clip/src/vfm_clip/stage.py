"""The stage `clip.train`: open_clip's parts, any vision tower, the contrastive loss over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, CuratedSubset, PairDataset
from vfm.config import UserError
from vfm.interfaces import CropScale
from vfm.stage import Context, Preflight
from vfm_clip.tower_training import TowerTraining

if TYPE_CHECKING:
    from vfm.data.loader import TrainingData
    from vfm.models.clip import ClipModel
    from vfm_clip.pairs import MakePair
    from vfm_clip.task import ClipTask


class ClipTrain(TowerTraining):
    """Trains a CLIP model on pairs: from scratch, from a CLIP checkpoint, or with pre-trained towers."""

    version: ClassVar[int] = 4  # since patch dropout draws on the device

    kind: Literal["clip.train"] = "clip.train"
    language: str | None = Field(None, description="which captions; default: the data's first language")
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
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)} must be two aspects, the narrower one first")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The data suit the batch, the model exists, and its towers take what is to come."""
        from vfm_clip.preflight import check_towers

        if data := ctx.artifact(self.data):
            self._check_data(data)
        made = ctx.stage(self.data)
        if self.sampler == "balanced" and made and not issubclass(made.makes, CuratedSubset):
            raise UserError(f"sampler: balanced draws by a CuratedSubset's probabilities; '{self.data}' has none")
        if clip := check_towers(self, ctx):
            clip.tokenize(["its tokenizer is there"])
            self._task(clip)

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Builds, trains and saves the model."""
        from vfm.models.clip import why_not_open_clip
        from vfm.train import fit, is_main
        from vfm_clip.panels import seen_panel

        pairs = ctx.load(self.data)
        self._check_data(pairs)
        clip = self._model(ctx)
        task = self._task(clip)
        data, make = self._training_data(pairs, clip)
        if is_main():
            ctx.panel(seen_panel(data, make, ctx.directory))
        fit(task, data, self, ctx, self.runtime)
        if is_main() and (why := why_not_open_clip(clip)):
            ctx.warn(why)
        return task.export(ctx.directory)

    def _check_data(self, data: PairDataset) -> None:
        if data.num_samples < self.global_batch_size:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is more than the {data.num_samples} pairs of '{self.data}'"
            )
        data.check_languages([self.language], self.data)
        if self.sampler == "balanced":
            from vfm.data.source import check_balanced

            check_balanced(data)

    def _model(self, ctx: Context) -> ClipModel:
        """The model as it starts, with what is locked."""
        import math

        from vfm_clip.start import starting_model

        clip = starting_model(self, ctx)
        parts: Any = clip.module
        if self.init and getattr(parts, "logit_bias", None) is not None:
            ctx.warn(
                f"'{self.init}' was trained with SigLIP's sigmoid loss; here the softmax over the batch takes over"
            )
        if self.logit_scale_init:
            parts.logit_scale.data.fill_(math.log(self.logit_scale_init))
        return clip

    def _task(self, clip: ClipModel) -> ClipTask:
        from vfm_clip.task import ClipTask

        return ClipTask(
            clip,
            logit_scale_max=self.logit_scale_max,
            train_logit_scale=not self.lock_logit_scale,
            loss_chunk_size=self.loss_chunk_size,
            unmasked_from=self.num_steps - self.unmasked_steps,
            image=self.image_rates,
            text=self.text_rates,
        )

    def _training_data(self, pairs: PairDataset, clip: ClipModel) -> tuple[TrainingData, MakePair]:
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_balanced, open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm_clip.pairs import EvalTransform, MakePair

        facts = clip.preprocess
        transform = (
            ImageTransform(
                facts.image_size, scale=self.crop_scale, ratio=self.crop_ratio, interpolation=facts.interpolation
            )
            if self.crop_scale
            else EvalTransform(facts)
        )
        language = self.language or pairs.languages[0]
        balanced = self.sampler == "balanced"
        source = open_balanced(pairs, seed=self.seed, language=language) if balanced else open_dataset(pairs)
        make = MakePair(transform, clip.tokenizer, language)
        return TrainingData.of(self, source, make), make
