"""The stage `clip.train`: open_clip's parts, any vision tower, the contrastive loss over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, CuratedSubset, PairDataset, VisionCheckpoint
from vfm.config import UserError
from vfm.interfaces import ClipTraining, CropScale
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from vfm.data.loader import TrainingData
    from vfm.models.clip import ClipModel
    from vfm_clip.pairs import MakePair
    from vfm_clip.task import ClipTask


class ClipTrain(ClipTraining):
    """Trains a CLIP model on pairs: from scratch, from a CLIP checkpoint, or with a pre-trained vision tower."""

    version: ClassVar[int] = 3  # since the order of shards and that within the first window are two draws

    kind: Literal["clip.train"] = "clip.train"
    model: str | dict[str, Any] = Field(
        "ViT-Nano-4-32", description="an open_clip name (vfm adds small ones), or a configuration in its form"
    )
    image_size: int | None = Field(None, ge=1, description="pixels; default: the model's own")
    language: str | None = Field(None, description="which captions; default: the data's first language")
    sampler: Literal["shuffled", "balanced"] = Field(
        "shuffled",
        description="balanced: each epoch draws anew which texts of a curated subset it uses, by their probabilities;"
        " shuffled: every epoch has all samples",
    )
    init: Ref[ClipCheckpoint] | None = Field(None, description="start from this CLIP model instead of from scratch")
    init_vision: Ref[VisionCheckpoint] | None = Field(
        None, description="start the vision tower from this encoder; the model's tower must be of its kind"
    )
    lock_image: bool = Field(
        False, description="keep the vision tower as it starts (LiT); what init_vision leaves new in it is trained"
    )
    lock_text: bool = Field(False, description="keep the text tower as it starts")
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
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    lr: float = Field(5e-4, ge=0, description="at its peak")
    warmup_steps: int = Field(
        100, ge=0, description="steps over which lr rises; without any, features may collapse at once (loss at ln N)"
    )
    weight_decay: float = Field(
        0.2, ge=0, description="for matrices; gains, biases, positions and class tokens have none"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ClipTrain:
        if self.lock_image and self.lock_text:
            raise ValueError("lock_image and lock_text leave nothing to train")
        if self.lock_image and not (self.init or self.init_vision):
            raise ValueError("lock_image would keep random weights: give init or init_vision")
        if self.lock_text and not self.init:
            raise ValueError("lock_text would keep random weights: give init")
        if self.init and (given := {"model", "image_size"} & self.model_fields_set):
            raise ValueError(f"init brings its own architecture: leave {' and '.join(sorted(given))} out")
        if self.logit_scale_init and self.logit_scale_init > self.logit_scale_max:
            raise ValueError(f"logit_scale_init {self.logit_scale_init:g} is above its max, {self.logit_scale_max:g}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)} must be two aspects, the narrower one first")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The data suit the batch, the model exists, and its vision tower takes the encoder that is to come."""
        from vfm.models.clip import blueprint
        from vfm_clip.preflight import check_vision, find_encoder

        if data := ctx.artifact(self.data):
            self._check_data(data)
        made = ctx.stage(self.data)
        if self.sampler == "balanced" and made and not issubclass(made.makes, CuratedSubset):
            raise UserError(f"sampler: balanced draws by a CuratedSubset's probabilities; '{self.data}' has none")
        start = ctx.artifact(self.init) if self.init else None
        if self.init and not start:
            return
        clip = blueprint(start or self.model, self.image_size)
        clip.tokenize(["its tokenizer is there"])
        self._task(clip)
        encoder = find_encoder(ctx, self.init_vision) if self.init_vision else None
        if encoder:
            check_vision(clip, encoder, str(self.init_vision))

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

        from vfm.models.clip import build_clip, load_clip
        from vfm.models.hand_over import hand_over
        from vfm_clip.towers import lock_towers, new_weights

        if self.init:
            clip = load_clip(ctx.load(self.init))
            if getattr(clip.module, "logit_bias", None) is not None:
                ctx.warn(
                    f"'{self.init}' was trained with SigLIP's sigmoid loss; here the softmax over the batch takes over"
                )
        else:
            clip = build_clip(self.model, image_size=self.image_size, seed=self.seed)
        parts: Any = clip.module
        if self.logit_scale_init:
            parts.logit_scale.data.fill_(math.log(self.logit_scale_init))
        if self.grad_checkpointing:
            parts.set_grad_checkpointing()
        new: set[str] = set()
        if self.init_vision:
            report = hand_over(ctx.load(self.init_vision), clip)
            ctx.log(f"vision tower from '{self.init_vision}': {report.summary}")
            ctx.panel(report.panel())
            new = new_weights(report)
        lock_towers(clip, image=self.lock_image, text=self.lock_text, new=new)
        return clip

    def _task(self, clip: ClipModel) -> ClipTask:
        from vfm_clip.task import ClipTask

        return ClipTask(
            clip,
            logit_scale_max=self.logit_scale_max,
            train_logit_scale=not self.lock_logit_scale,
            loss_chunk_size=self.loss_chunk_size,
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
