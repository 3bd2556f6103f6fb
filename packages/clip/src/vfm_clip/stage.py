"""The stage `clip.train`: open_clip's parts, any vision tower, the contrastive loss over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, VisionCheckpoint
from vfm.config import UserError
from vfm.interfaces import ClipTraining
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from vfm.models.clip import ClipModel
    from vfm.models.hand_over import KeyReport


class ClipTrain(ClipTraining):
    """Trains a CLIP model on pairs, from scratch, from a CLIP checkpoint, or with a pre-trained vision tower."""

    kind: Literal["clip.train"] = "clip.train"
    model: str | dict[str, Any] = Field(
        "ViT-Nano-4-32", description="an open_clip name (vfm adds small ones), or a configuration in its form"
    )
    image_size: int | None = Field(None, ge=1, description="pixels; default: the model's own")
    language: str | None = Field(None, description="which captions; default: the data's first language")
    init: Ref[ClipCheckpoint] | None = Field(None, description="start from this CLIP model instead of from scratch")
    init_vision: Ref[VisionCheckpoint] | None = Field(None, description="start the vision tower from this encoder")
    lock_image: bool = Field(False, description="keep the vision tower as it starts (LiT)")
    lock_text: bool = Field(False, description="keep the text tower as it starts")
    logit_scale_init: float = Field(1 / 0.07, gt=0, description="inverse temperature at the start")
    logit_scale_max: float = Field(100.0, ge=1, description="largest inverse temperature")
    lock_logit_scale: bool = Field(False, description="keep the temperature as it starts")
    crop_scale: tuple[float, float] | None = Field((0.9, 1.0), description="share of the area a random crop keeps")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(0.2, ge=0)

    @model_validator(mode="after")
    def _something_to_train(self) -> ClipTrain:
        if self.lock_image and self.lock_text:
            raise ValueError("lock_image and lock_text leave nothing to train")
        if self.init and "model" in self.model_fields_set:
            raise ValueError("init brings its own architecture: leave model out")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The architecture exists, the tower's weights fit it, and the batch is not larger than the data."""
        data = ctx.artifact(self.data)
        if data and data.num_samples < self.global_batch_size:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is more than the {data.num_samples} pairs of '{self.data}'"
            )
        if data and self.language and self.language not in data.languages:
            raise UserError(f"language {self.language!r} is not in '{self.data}'; it has {', '.join(data.languages)}")
        if self.init is None:
            clip = self._build()
            vision = ctx.artifact(self.init_vision) if self.init_vision else None
            if vision:
                self._take_vision(vision, clip)

    def run(self, ctx: Context) -> ClipCheckpoint:
        """Builds, trains and saves the model."""
        from vfm.data.images import ResizeMode
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm.models.clip import load_clip
        from vfm.train import fit
        from vfm_clip.pairs import MakePair
        from vfm_clip.task import ClipTask

        pairs = ctx.load(self.data)
        clip = load_clip(ctx.load(self.init)) if self.init else self._build()
        if self.init_vision:
            report = self._take_vision(ctx.load(self.init_vision), clip)
            ctx.log(f"vision tower from '{self.init_vision}': {report.summary}")
            ctx.panel(report.panel())
        self._lock(clip)
        facts = clip.preprocess
        mode: ResizeMode = "squash" if facts.resize_mode == "squash" else "crop"
        transform = ImageTransform(facts.image_size, mode, scale=self.crop_scale, ratio=(0.95, 1.05))
        data = TrainingData(
            open_dataset(pairs),
            MakePair(transform, clip.tokenizer, self.language or pairs.languages[0]),
            seed=self.seed,
            global_batch_size=self.global_batch_size,
            shuffle_shards=self.shuffle_shards,
            workers=self.runtime.workers,
            max_bad_fraction=self.max_bad_fraction,
        )
        task = ClipTask(clip, logit_scale_max=self.logit_scale_max, train_logit_scale=not self.lock_logit_scale)
        fit(task, data, self, ctx, self.runtime)
        return task.export(ctx.directory)

    def _build(self) -> ClipModel:
        import math

        from vfm.models.clip import build_clip

        clip = build_clip(
            self.model, image_size=self.image_size, seed=self.seed, init_logit_scale=math.log(self.logit_scale_init)
        )
        if self.grad_checkpointing:
            clip.module.set_grad_checkpointing()  # type: ignore[operator]
        return clip

    def _take_vision(self, vision: VisionCheckpoint, clip: ClipModel) -> KeyReport:
        from vfm.models.hand_over import hand_over

        return hand_over(vision, clip)

    def _lock(self, clip: ClipModel) -> None:
        vision = {id(parameter) for parameter in clip.module.visual.parameters()}  # type: ignore[union-attr]
        for name, parameter in clip.module.named_parameters():
            temperature = name in ("logit_scale", "logit_bias")
            locked = not temperature and (self.lock_image if id(parameter) in vision else self.lock_text)
            parameter.requires_grad_(not locked)
