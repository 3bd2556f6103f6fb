"""The stage `eva.pretrain`: a ViT learns to reconstruct the CLIP features of what it does not see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, VisionCheckpoint
from vfm.config import Config
from vfm.interfaces import VisionPretraining
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from torch import nn

    from vfm_eva.task import EvaTask, Teacher

Share = Annotated[float, Field(gt=0, le=1)]


class Target(Config):
    """Which of the teacher's features are predicted."""

    layer: int = Field(-1, description="block, from 0; negative counts from the end")
    projected: bool = Field(
        True, description="through the projection into the joint space; false: the final norm alone"
    )
    normalize: bool = Field(False, description="to unit length, before another grid's features are interpolated")


class EvaPretrain(VisionPretraining):
    """Pre-trains a vision transformer by masked feature modelling, images only (EVA, arXiv:2211.07636)."""

    kind: Literal["eva.pretrain"] = "eva.pretrain"
    model: str | dict[str, Any] = Field(
        "eva02_nano_patch4_32",
        description="timm name of an Eva or a plain ViT; or a mapping of architecture and the arguments that differ",
    )
    image_size: int | None = Field(None, ge=1, description="pixels; default: the model's own")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="the encoder whose features are the target")
    target: Target = Field(Target(), description="which of the teacher's features")
    mask: Literal["block", "block_exact", "random"] = Field(
        "block",
        description="block: EVA's rectangles; block_exact: the same with an exact count; random: single patches",
    )
    mask_ratio: float = Field(105 / 256, gt=0, lt=1, description="share of the patches that is masked; block: at most")
    drop_path: float = Field(0.0, ge=0, lt=1, description="chance to skip the last block; falls to 0 at the first")
    crop_scale: tuple[Share, Share] = Field((0.2, 1.0), description="share of the area a random crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="chance of a left-right flip")
    lr: float = Field(1.5e-3, ge=0, description="peak learning rate")
    min_lr: float = Field(1e-5, ge=0, description="where the cosine schedule ends")
    grad_clip_norm: float | None = Field(3.0, gt=0, description="largest gradient norm; null clips nothing")

    @model_validator(mode="after")
    def _crops(self) -> EvaPretrain:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale {list(self.crop_scale)} is from small to large")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The student exists and can be masked; a teacher that is there already has the target."""
        import torch

        from vfm_eva.task import student_grid

        with torch.device("meta"):  # shapes without weights: a giant costs nothing
            student = self._student()
        rows, columns = student_grid(student, self._num_masked(student))
        teacher = ctx.artifact(self.teacher)
        if teacher:
            task = self._task(student, self._teacher(teacher)).to("meta")
            sizes = {"images": task.preprocess.image_size, "teacher_images": task.teacher.preprocess.image_size}
            images = {name: torch.zeros(1, 3, size, size, dtype=torch.uint8) for name, size in sizes.items()}
            batch = {**images, "bool_mask": torch.zeros(1, rows * columns, dtype=torch.bool)}
            task({name: value.to("meta") for name, value in batch.items()})

    def run(self, ctx: Context) -> VisionCheckpoint:
        """Trains the student and shows what it learned to see."""
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.data.transforms import ImageTransform
        from vfm.train import fit, is_main
        from vfm_eva.images import MakeMasked
        from vfm_eva.pictures import cosine_sheet

        task = self._task(self._student(), self._teacher(ctx.load(self.teacher)))
        transform = ImageTransform(task.preprocess.image_size, scale=self.crop_scale, flip=self.flip)
        teacher_size = task.teacher.preprocess.image_size
        make = MakeMasked(transform, task.grid, task.num_masked, self.mask, teacher_size)
        source = open_dataset(ctx.load(self.data))
        data = TrainingData.of(self, source, make)
        fit(task, data, self, ctx, self.runtime)
        if is_main():
            ctx.panel(cosine_sheet(task, source, make, ctx.directory))
        return task.export(ctx.directory)

    def _task(self, student: nn.Module, teacher: Teacher) -> EvaTask:
        from vfm_eva.task import EvaTask

        return EvaTask(student, teacher, num_masked=self._num_masked(student), seed=self.seed)

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
