"""The stage `eva.targets`: what a teacher says of every crop, computed once and kept for any number of trainings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vfm.artifacts import ClipCheckpoint, ImageDataset, SampleCache, VisionCheckpoint
from vfm.config import Config, UserError
from vfm.interfaces import CropScale
from vfm.stage import Context, Preflight, Ref, Seed, Stage

if TYPE_CHECKING:
    from vfm_eva.teacher import Teacher

Side = Annotated[int, Field(ge=1)]


class Target(Config):
    """Which of the teacher's features are predicted."""

    layer: int = Field(-1, description="block, from 0; negative counts from the end")
    projected: bool = Field(
        True, description="through the projection into the joint space; false: the final norm alone"
    )
    normalize: bool = Field(False, description="to unit length, before another grid's features are interpolated")

    def teacher(self, checkpoint: ClipCheckpoint | VisionCheckpoint, *, bf16: bool | None = None) -> Teacher:
        """The encoder of a checkpoint as the teacher that gives these features, in bf16 or not (see `Teacher`).

        Raises:
            UserError: its weights do not fit, or hold what is no number.
        """
        from vfm.models.clip import load_clip
        from vfm.models.vision import load_vision, vision_preprocess
        from vfm_eva.teacher import Teacher

        if isinstance(checkpoint, ClipCheckpoint):
            clip = load_clip(checkpoint)
            teacher = Teacher(clip, clip.preprocess, **self.model_dump(), bf16=bf16)
        else:
            encoder = load_vision(checkpoint)
            teacher = Teacher(encoder, vision_preprocess(encoder), **self.model_dump(), bf16=bf16)
        prefix = "visual" if isinstance(checkpoint, ClipCheckpoint) else ""
        for name, weight in teacher.module.named_parameters(prefix):
            if not weight.isfinite().all():
                raise UserError(f"{checkpoint.path}: {name} holds NaN or infinity; so would every target")
        return teacher


class Crops(Config):
    """Which part of a picture is seen."""

    crop_scale: CropScale = Field((0.2, 1.0), description="share of the area a random crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="chance of a left-right flip")


class EvaTargets(Stage, Crops):
    """Keeps what a teacher says of a data set's images, so that `eva.pretrain` need not run it."""

    kind: Literal["eva.targets"] = "eva.targets"
    data: Ref[ImageDataset] = Field(description="the images that will be trained on")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="the encoder whose features are the target")
    target: Target = Field(Target(), description="which of the teacher's features")
    grid: tuple[Side, Side] = Field(description="rows and columns of the student's patches")
    num_crops: int = Field(1, ge=1, description="crops of each image; epochs take them in turn")
    dtype: Literal["int8", "fp16", "fp32"] = Field("fp16", description="what the features are stored in")
    components: int | None = Field(
        None, ge=1, description="keep so many components of a PCA instead of all channels; default: all channels"
    )
    pca_images: int = Field(512, ge=1, description="images, drawn from the seed, that the PCA is fitted on")
    precision: Literal["fp32", "amp_bf16"] = Field("fp32", description="what the teacher computes in")
    micro_batch_size: int = Field(64, ge=1, description="crops a forward pass")
    samples_per_shard: int | None = Field(
        None, ge=1, description="samples of a file, the most that a crash costs; default: about 128 MiB"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more samples than this share are bad")
    seed: Seed = Field(0, description="draws the crops")

    def preflight(self, ctx: Preflight) -> None:
        """A teacher that is there already has the target, and as many channels as components are wanted."""
        import torch

        checkpoint = ctx.artifact(self.teacher)
        if checkpoint:
            teacher = self.target.teacher(checkpoint)
            self.check_components(teacher)
            teacher.module.to("meta")
            size = teacher.preprocess.image_size
            teacher.target(torch.zeros(1, 3, size, size, dtype=torch.uint8, device="meta"), self.grid)

    def check_components(self, teacher: Teacher) -> None:
        """Refuses more components than there are channels.

        Raises:
            UserError: as it says.
        """
        if self.components and self.components > teacher.width:
            raise UserError(
                f"{self.name}: components is {self.components}; the teacher's features have {teacher.width} channels"
            )

    def run(self, ctx: Context) -> SampleCache:
        """Writes shard after shard; after a crash the next run goes on with the shard that was not finished."""
        from vfm.data.sample_cache import FOLDER, CacheWriter
        from vfm_eva.making import Asking
        from vfm_eva.pca import FILE

        data, checkpoint = ctx.load(self.data), ctx.load(self.teacher)
        teacher = self.target.teacher(checkpoint, bf16=self.precision == "amp_bf16")
        self.check_components(teacher)
        asking = Asking(self, ctx, teacher, data)
        pca = asking.pca() if self.components else None
        writer = CacheWriter(
            ctx.work / FOLDER,
            num_samples=data.num_samples,
            num_crops=self.num_crops,
            shape=(*self.grid, self.components or teacher.width),
            dtype=self.dtype,
            samples_per_shard=self.samples_per_shard,
        )
        asking.fill(writer, pca)
        if pca:
            pca.save(ctx.directory)
        return writer.publish(
            ctx.directory,
            data=data.reference(ctx.directory),
            producer=f"{checkpoint.reference(ctx.directory)} {self.target.model_dump_json()}",
            basis=FILE if pca else "",
            crop_scale=self.crop_scale,
            flip=self.flip,
            seed=self.seed,
        )
