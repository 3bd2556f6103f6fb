"""Compute a model's output for every crop of a dataset once, and store it."""

# C crops of a sample, S side of a crop

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data.index.source import Source
from vfm.data.indexing.indexing import MIN_SAMPLES_TO_CHECK, check_bad
from vfm.data.loading.batch import SampleDraw
from vfm.data.loading.eval_loader import ordered_batches
from vfm.data.loading.sample_cache import CacheWriter
from vfm.data.loading.transforms import ImageTransform, to_tensor
from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import Sample
from vfm.interfaces import Context


@dataclass(frozen=True)
class SampleCrops:
    """The crops of a sample, or of the samples in a batch."""

    images: Tensor  # (C, 3, S, S) uint8
    index: Tensor  # number of the sample


@dataclass(frozen=True)
class MakeCrops:
    """Makes the crops of a sample for a cache.

    Attributes:
        transform: Makes the model's input from an image.
        num_crops: Number of crops, C.
        seed: Seed of the crops. Each crop also depends on its number and the number of the sample.
    """

    transform: ImageTransform
    num_crops: int
    seed: int

    def __call__(self, sample: Sample, draw: SampleDraw) -> SampleCrops:
        """Crop a sample.

        Raises:
            BadSample: If the image cannot be read.
        """
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        crops = []
        for crop in range(self.num_crops):
            crop_seed = SampleDraw.of(self.seed, crop, draw.index).seed
            crops.append(to_tensor(self.transform.apply(image, crop_seed)))
        return SampleCrops(torch.stack(crops), torch.tensor(draw.index))


def fill_cache(
    writer: CacheWriter,
    ctx: Context,
    source: Source,
    make: MakeCrops,
    compute: Callable[[SampleCrops], Tensor],
    *,
    batch_size: int,
    workers: int,
    max_bad_fraction: float,
) -> None:
    """Compute and store the tensors of all samples that the cache does not hold yet.

    Args:
        writer: Stores the tensors. Its complete shards are kept.
        ctx: Receives progress and bad samples, including those found before an interruption.
        source: The samples.
        make: Makes the crops of a sample.
        compute: Computes the tensors of a batch's crops, (samples, C, *shape) in any arrangement.
        batch_size: Samples per call of `compute`.
        workers: Processes that read and decode.
        max_bad_fraction: Tolerated fraction of bad samples.

    Raises:
        UserError: If too many samples are bad, or a tensor is not finite.
    """
    plan = writer.plan(batch_size)
    for reason, where in writer.bad:  # found before an interruption
        ctx.skip(reason, where)
    for samples, batch in zip(plan, ordered_batches(source, make, plan, workers=workers), strict=True):
        tensors = {}
        if batch.keys:
            rows = compute(batch.inputs).float().cpu().reshape(-1, writer.num_crops, *writer.shape).numpy()
            tensors = dict(zip(batch.inputs.index.tolist(), rows, strict=True))
        for reason, where in batch.bad:
            ctx.skip(reason, where)
        if samples.stop >= MIN_SAMPLES_TO_CHECK or samples.stop == len(source):
            check_bad(ctx.stage, ctx.bad, samples.stop, max_bad_fraction)
        writer.write(samples, tensors, batch.bad)
        ctx.progress(samples.stop, len(source), "images")
