"""The stage `eva.pretrain`: a ViT learns to reconstruct the CLIP features of what it does not see."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, ImageDataset, SampleCache, VisionCheckpoint
from vfm.config import Config, UserError
from vfm.interfaces import VisionPretraining
from vfm.stage import Context, Preflight, Ref
from vfm_eva.targets import Crops, EvaTargets, Target

if TYPE_CHECKING:
    from torch import nn

    from vfm.data.loader import Make
    from vfm_eva.decoder import Decoder
    from vfm_eva.task import EvaTask
    from vfm_eva.teacher import StoredTargets, Teacher


MaskKind = Literal["block", "block_exact", "random"]
Init = Literal["timm", "eva01", "eva02", "mae"]


class DecoderSize(Config):
    """What predicts the masked patches where the encoder sees visible ones alone."""

    width: int = Field(512, ge=4, multiple_of=4, description="channels")
    depth: int = Field(4, ge=1, description="blocks")
    num_heads: int = Field(16, ge=1, description="of each block; they divide width")

    @model_validator(mode="after")
    def _whole_heads(self) -> DecoderSize:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide by num_heads {self.num_heads}")
        return self


class EvaPretrain(VisionPretraining, Crops):
    """Pre-trains a vision transformer by masked feature modelling, images only (EVA, arXiv:2211.07636)."""

    version: ClassVar[int] = 2  # since masks are drawn in lock-step and every masked patch of a step weighs the same

    kind: Literal["eva.pretrain"] = "eva.pretrain"
    model: str | dict[str, Any] = Field(
        "eva02_nano_patch4_32",
        description="timm name of an Eva or a plain ViT; or a mapping of architecture and the arguments that differ",
    )
    image_size: int | None = Field(None, ge=1, description="pixels; default: the model's own")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] | None = Field(
        None, description="the encoder whose features are the target; give this or targets"
    )
    targets: Ref[SampleCache] | None = Field(
        None, description="its features and their crops, kept by eva.targets: the teacher is not run"
    )
    target: Target = Field(Target(), description="which of the teacher's features")
    teacher_precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="what the teacher computes in; bf16 keeps its matrices so, too; auto: bf16 on a GPU, else as the"
        " student's precision has it",
    )
    mask: MaskKind = Field(
        "block",
        description="block: EVA's rectangles; block_exact: the same with an exact count; random: single patches",
    )
    mask_ratio: float = Field(105 / 256, gt=0, lt=1, description="share of the patches that is masked; block: at most")
    encode: Literal["all", "visible"] = Field(
        "all",
        description="all: every patch goes through the encoder, masked ones as a mask token (EVA); visible: visible"
        " patches alone do, and a decoder predicts the others (EVA-L, MAE)",
    )
    decoder: DecoderSize = Field(DecoderSize(), description="for encode: visible")
    init: Init = Field(
        "timm", description="how weights are drawn: as timm does, or as the code of EVA, of EVA-02, of EVA-L does"
    )
    patch_embed_grad: float = Field(
        1.0, gt=0, le=1, description="share of its gradient that the patch embedding takes; EVA-02 has 0.1"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="chance to skip the last block; falls to 0 at the first")
    lr: float = Field(1.5e-3, ge=0, description="peak learning rate")
    min_lr: float = Field(1e-5, ge=0, description="where the cosine schedule ends")
    grad_clip_norm: float | None = Field(3.0, gt=0, description="largest gradient norm; null clips nothing")

    @model_validator(mode="after")
    def _one_source(self) -> EvaPretrain:
        if (self.teacher is None) == (self.targets is None):
            raise ValueError("give exactly one of teacher and targets")
        fields = EvaPretrain.model_fields
        set_here = [
            name
            for name in ("target", "teacher_precision", "crop_scale", "flip")
            if getattr(self, name) != fields[name].default
        ]
        if self.targets and set_here:
            raise ValueError(f"{set_here[0]} is fixed in {self.targets!r}; set it where the targets are made")
        return self

    @model_validator(mode="after")
    def _decodable(self) -> EvaPretrain:
        if self.encode == "visible" and self.mask == "block":
            raise ValueError("encode: visible wants masks of equal count; set mask to random or block_exact")
        if self.encode == "all" and self.decoder != DecoderSize():
            raise ValueError("decoder is for encode: visible")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The student exists and can be masked; a teacher that is there already has the target; targets fit."""
        import torch

        from vfm_eva.student import student_grid

        with torch.device("meta"):  # shapes without weights: a giant costs nothing
            student = self._student()
        grid = student_grid(student, self._num_masked(student))
        if self.targets:
            self._check_targets(ctx, self.targets, grid)
        elif self.teacher and (checkpoint := ctx.artifact(self.teacher)):
            teacher = self.target.teacher(checkpoint)
            task = self._task(student, teacher).to("meta")
            sizes = {"images": task.preprocess.image_size, "teacher_images": teacher.preprocess.image_size}
            images = {name: torch.zeros(1, 3, size, size, dtype=torch.uint8) for name, size in sizes.items()}
            batch = {**images, "bool_mask": torch.zeros(1, grid[0] * grid[1], dtype=torch.bool)}
            task({name: value.to("meta") for name, value in batch.items()})

    def run(self, ctx: Context) -> VisionCheckpoint:
        """Trains the student and shows what it learned to see."""
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.train import fit, is_main
        from vfm_eva.alarm import Alarm
        from vfm_eva.init import init_weights
        from vfm_eva.masks import MaskedData, Masks
        from vfm_eva.pictures import show

        data = ctx.load(self.data)
        task, make = self._from_cache(ctx, data) if self.targets else self._from_teacher(ctx)
        init_weights(task, self.init, self.seed)
        source, masks = open_dataset(data), Masks(self.mask, task.grid, task.num_masked)
        batches = MaskedData(TrainingData.of(self, source, make), masks)
        fit(task, batches, self, replace(ctx, send=Alarm(ctx, self)), self.runtime)
        if is_main():
            show(task, source, make, masks, ctx)
        return task.export(ctx.directory)

    def _from_teacher(self, ctx: Context) -> tuple[EvaTask, Make]:
        from vfm_eva.images import MakeViews, crop_transform

        assert self.teacher
        teacher = self.target.teacher(ctx.load(self.teacher), bf16=self._teacher_in_bf16())
        task = self._task(self._student(), teacher)
        return task, MakeViews(*(crop_transform(self, model.preprocess) for model in (task, teacher)))

    def _teacher_in_bf16(self) -> bool | None:
        from vfm.train import resolve_device

        if self.teacher_precision == "auto":
            return True if resolve_device(self.runtime).type == "cuda" else None
        return self.teacher_precision == "bf16"

    def _from_cache(self, ctx: Context, data: ImageDataset) -> tuple[EvaTask, Make]:
        from vfm.data.sample_cache import CachedTensors
        from vfm_eva.images import MakeViews, MakeWithTargets, crop_transform
        from vfm_eva.pca import Pca
        from vfm_eva.teacher import StoredTargets

        assert self.targets
        cache = ctx.load(self.targets)
        pca = Pca.load(cache.path) if cache.basis else None
        task = self._task(self._student(), StoredTargets(len(pca.mean) if pca else cache.shape[-1], pca))
        _check_grid(cache.shape[:-1], task.grid)
        _check_data(cache, data)
        make = MakeViews(crop_transform(cache, task.preprocess))
        return task, MakeWithTargets(make, CachedTensors(cache), self.global_batch_size)

    def _check_targets(self, ctx: Preflight, targets: Ref[SampleCache], grid: tuple[int, int]) -> None:
        """What is known of them: the facts where they are there, else the stage that will make them."""
        cache, data, maker = ctx.artifact(targets), ctx.artifact(self.data), ctx.stage(targets)
        if cache:
            _check_grid(cache.shape[:-1], grid)
            if data:
                _check_data(cache, data)
        elif isinstance(maker, EvaTargets):
            _check_grid(maker.grid, grid)
            if maker.data != self.data:
                raise UserError(f"targets {targets!r} are made from {maker.data!r}, not from data {self.data!r}")

    def _task(self, student: nn.Module, teacher: Teacher | StoredTargets) -> EvaTask:
        from vfm_eva.task import EvaTask

        return EvaTask(
            student,
            teacher,
            num_masked=self._num_masked(student),
            decoder=self._decoder(student) if self.encode == "visible" else None,
            patch_embed_grad=self.patch_embed_grad,
            seed=self.seed,
        )

    def _decoder(self, student: Any) -> Decoder:
        import torch

        from vfm_eva.decoder import Decoder
        from vfm_eva.student import student_grid

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 2)
            return Decoder(
                student.num_features, student_grid(student), student.num_prefix_tokens, **self.decoder.model_dump()
            )

    def _student(self) -> nn.Module:
        from vfm.models.vision import build_vision

        model = build_vision(
            self.model, image_size=self.image_size, num_classes=0, seed=self.seed, drop_path_rate=self.drop_path
        )
        if self.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        return model

    def _num_masked(self, student: nn.Module) -> int:
        from vfm.models.patch_features import grid_size

        rows, columns = grid_size(student)
        return round(self.mask_ratio * rows * columns)


def _check_grid(found: tuple[int, ...], grid: tuple[int, int]) -> None:
    if found != grid:
        sides = " x ".join(map(str, found))
        raise UserError(
            f"the targets are for {sides} patches, the student has {grid[0]} x {grid[1]}; "
            f"set grid: {list(grid)} where the targets are made"
        )


def _check_data(cache: SampleCache, data: ImageDataset) -> None:
    """The cache's rows are those of this very data set."""
    made_from = cache.linked(cache.data).resolve()
    if made_from != data.path.resolve():
        raise UserError(f"the targets were made from {made_from}, data is {data.path.resolve()}; it must be the same")
