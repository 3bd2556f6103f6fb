"""The stage `eva.targets`: what a teacher says of every crop, computed once and kept for any number of trainings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, ImageDataset, SampleCache, VisionCheckpoint
from vfm.config import Config, UserError
from vfm.stage import Context, Preflight, Ref, Stage

if TYPE_CHECKING:
    from vfm.data.sample_cache import CacheWriter
    from vfm_eva.task import Teacher

Share = Annotated[float, Field(gt=0, le=1)]
Side = Annotated[int, Field(ge=1)]


class Target(Config):
    """Which of the teacher's features are predicted."""

    layer: int = Field(-1, description="block, from 0; negative counts from the end")
    projected: bool = Field(
        True, description="through the projection into the joint space; false: the final norm alone"
    )
    normalize: bool = Field(False, description="to unit length, before another grid's features are interpolated")

    def teacher(self, checkpoint: ClipCheckpoint | VisionCheckpoint) -> Teacher:
        """The encoder of a checkpoint as the teacher that gives these features."""
        from vfm.models.clip import load_clip
        from vfm.models.vision import load_vision, vision_preprocess
        from vfm_eva.task import Teacher

        if isinstance(checkpoint, ClipCheckpoint):
            clip = load_clip(checkpoint)
            return Teacher(clip, clip.preprocess, **self.model_dump())
        encoder = load_vision(checkpoint)
        return Teacher(encoder, vision_preprocess(encoder), **self.model_dump())


class Crops(Config):
    """Which part of a picture is seen."""

    crop_scale: tuple[Share, Share] = Field((0.2, 1.0), description="share of the area a random crop keeps")
    flip: float = Field(0.5, ge=0, le=1, description="chance of a left-right flip")

    @model_validator(mode="after")
    def _from_small_to_large(self) -> Crops:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale {list(self.crop_scale)} is from small to large")
        return self


class EvaTargets(Stage, Crops):
    """Keeps what a teacher says of a data set's images, so that `eva.pretrain` need not run it."""

    kind: Literal["eva.targets"] = "eva.targets"
    data: Ref[ImageDataset] = Field(description="the images that will be trained on")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="the encoder whose features are the target")
    target: Target = Field(Target(), description="which of the teacher's features")
    grid: tuple[Side, Side] = Field(description="rows and columns of the student's patches")
    num_crops: int = Field(1, ge=1, description="crops of each image; epochs take them in turn")
    dtype: Literal["fp16", "fp32"] = Field("fp16", description="what the features are stored in")
    precision: Literal["fp32", "amp_bf16"] = Field("fp32", description="what the teacher computes in")
    micro_batch_size: int = Field(64, ge=1, description="crops a forward pass")
    samples_per_shard: int | None = Field(
        None, ge=1, description="samples of a file, the most that a crash costs; default: about 128 MiB"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more samples than this share are bad")
    seed: int = Field(0, description="draws the crops")

    def preflight(self, ctx: Preflight) -> None:
        """A teacher that is there already has the target."""
        import torch

        checkpoint = ctx.artifact(self.teacher)
        if checkpoint:
            teacher = self.target.teacher(checkpoint)
            teacher.module.to("meta")
            size = teacher.preprocess.image_size
            teacher.target(torch.zeros(1, 3, size, size, dtype=torch.uint8, device="meta"), self.grid)

    def run(self, ctx: Context) -> SampleCache:
        """Writes shard after shard; after a crash the next run goes on with the shard that was not finished."""
        from vfm.data.sample_cache import FOLDER, CacheWriter

        data, checkpoint = ctx.load(self.data), ctx.load(self.teacher)
        teacher = self.target.teacher(checkpoint)
        writer = CacheWriter(
            ctx.work / FOLDER,
            num_samples=data.num_samples,
            num_crops=self.num_crops,
            shape=(*self.grid, teacher.width),
            dtype=self.dtype,
            samples_per_shard=self.samples_per_shard,
        )
        self._fill(ctx, writer, teacher, data)
        return writer.publish(
            ctx.directory,
            data=data.reference(ctx.directory),
            producer=f"{checkpoint.reference(ctx.directory)} {self.target.model_dump_json()}",
            crop_scale=self.crop_scale,
            flip=self.flip,
            seed=self.seed,
        )

    def _fill(self, ctx: Context, writer: CacheWriter, teacher: Teacher, data: ImageDataset) -> None:
        """Asks the teacher of all samples that are still to come."""
        import torch

        from vfm.data.loader import ordered_batches
        from vfm.data.source import open_dataset
        from vfm.train import resolve_device
        from vfm_eva.images import MakeCrops, crop_transform

        device = resolve_device(self.runtime)
        teacher.module.to(device)
        bf16 = self.precision == "amp_bf16"
        make = MakeCrops(crop_transform(self, teacher.preprocess), self.num_crops, self.seed)
        plan = writer.plan(max(1, self.micro_batch_size // self.num_crops))
        for told in writer.bad:  # before a crash
            ctx.skip(*told)
        batches = ordered_batches(open_dataset(data), make, plan, workers=self.runtime.workers)
        for samples, batch in zip(plan, batches, strict=True):
            tensors = {}
            if batch["keys"]:
                crops = batch["images"].flatten(0, 1)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    parts = [teacher.target(part.to(device), self.grid) for part in crops.split(self.micro_batch_size)]
                features = torch.cat(parts).float().cpu().reshape(-1, self.num_crops, *writer.shape)
                tensors = dict(zip(batch["index"].tolist(), features.numpy(), strict=True))
            for told in batch["bad"]:
                ctx.skip(*told)
            self._judge(ctx, samples.stop, data.num_samples)
            writer.write(samples, tensors, batch["bad"])
            ctx.progress(samples.stop, data.num_samples, "images")

    def _judge(self, ctx: Context, seen: int, total: int) -> None:
        from vfm.data.indexing import ENOUGH_TO_JUDGE

        num_bad = ctx.bad.total()
        if num_bad > self.max_bad_fraction * seen and (seen >= ENOUGH_TO_JUDGE or seen == total):
            reasons = ", ".join(f"{reason} ({count})" for reason, count in ctx.bad.most_common(3))
            raise UserError(
                f"{self.name}: {num_bad} of {seen} samples are bad: {reasons}; more than max_bad_fraction:"
                f" {self.max_bad_fraction}"
            )
