"""The stage `eva.pretrain`: a ViT learns to reconstruct the CLIP features of what it does not see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint, VisionCheckpoint
from vfm.config import Config
from vfm.interfaces import VisionPretraining
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from torch import nn

    from vfm_eva.task import EvaTask, Teacher


class Target(Config):
    """Which of the teacher's features are predicted."""

    layer: int = Field(-1, description="block, from 0; negative counts from the end")
    projected: bool = Field(True, description="through the projection into the joint space, or the final norm alone")
    normalize: bool = Field(False, description="to unit length; the loss does not see it")


class EvaPretrain(VisionPretraining):
    """Pre-trains a vision transformer by masked feature modelling, images only (EVA, arXiv:2211.07636)."""

    kind: Literal["eva.pretrain"] = "eva.pretrain"
    model: str | dict[str, Any] = Field("eva02_nano_patch4_32", description="timm name of an Eva or a plain ViT")
    image_size: int | None = Field(None, ge=1, description="pixels; default: the model's own")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="the encoder whose features are the target")
    target: Target = Target()
    mask: Literal["block", "block_exact", "random"] = Field(
        "block",
        description="block: EVA's rectangles; block_exact: the same with an exact count; random: single patches",
    )
    mask_ratio: float = Field(105 / 256, gt=0, lt=1, description="share of the patches that is masked")
    drop_path: float = Field(0.0, ge=0, lt=1)
    crop_scale: tuple[float, float] = Field((0.2, 1.0), description="share of the area a random crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="chance of a left-right flip")
    lr: float = Field(1.5e-3, ge=0)
    min_lr: float = Field(1e-5, ge=0)
    grad_clip_norm: float | None = Field(3.0, gt=0)

    def preflight(self, ctx: Preflight) -> None:
        """The student exists, its mask leaves something, and the teacher has the target, where it is there already."""
        from vfm_eva.task import check_fit

        student = self._student()
        teacher = ctx.artifact(self.teacher)
        if teacher:
            check_fit(student, self._teacher(teacher), self._num_masked(student))

    def run(self, ctx: Context) -> VisionCheckpoint:
        """Trains the student and shows what it learned to see."""
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm.models.vision import vision_preprocess
        from vfm.train import fit, is_main
        from vfm_eva.images import MakeMasked
        from vfm_eva.pictures import cosine_sheet
        from vfm_eva.task import EvaTask

        student = self._student()
        task: EvaTask = EvaTask(student, self._teacher(ctx.load(self.teacher)))
        transform = ImageTransform(vision_preprocess(student).image_size, "crop", scale=self.crop_scale, flip=self.flip)
        source = open_dataset(ctx.load(self.data))
        make = MakeMasked(transform, task.grid, self._num_masked(student), self.mask)
        data = TrainingData(
            source,
            make,
            seed=self.seed,
            global_batch_size=self.global_batch_size,
            shuffle_shards=self.shuffle_shards,
            workers=self.runtime.workers,
            max_bad_fraction=self.max_bad_fraction,
        )
        fit(task, data, self, ctx, self.runtime)
        if is_main():
            ctx.panel(cosine_sheet(task, source, make, ctx.directory))
        return task.export(ctx.directory)

    def _student(self) -> nn.Module:
        from vfm.models.vision import build_vision

        model = build_vision(
            self.model, image_size=self.image_size, num_classes=0, seed=self.seed, drop_path_rate=self.drop_path
        )
        if self.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        return model

    def _teacher(self, checkpoint: ClipCheckpoint | VisionCheckpoint) -> Teacher:
        from vfm.models.clip import load_clip
        from vfm.models.vision import load_vision, vision_preprocess
        from vfm_eva.task import Teacher

        target = self.target.model_dump()
        if isinstance(checkpoint, ClipCheckpoint):
            clip = load_clip(checkpoint)
            return Teacher(clip, clip.preprocess, **target)
        encoder = load_vision(checkpoint)
        return Teacher(encoder, vision_preprocess(encoder), **target)

    def _num_masked(self, student: nn.Module) -> int:
        from vfm.models.patch_features import grid_size

        rows, columns = grid_size(student)
        return round(self.mask_ratio * rows * columns)
