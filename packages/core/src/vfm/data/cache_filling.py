"""Filling a cache of tensors: what a model says of every crop of a data set is asked once and written down."""

# C crops of a sample, S side of a crop

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.data.eval_loader import ordered_batches
from vfm.data.images import decode_image
from vfm.data.indexing import ENOUGH_TO_JUDGE, check_bad
from vfm.data.loader import Batch, SampleSeed, sample_seed
from vfm.data.sample import Sample
from vfm.data.sample_cache import CacheWriter
from vfm.data.source import Source
from vfm.data.transforms import ImageTransform, to_tensor
from vfm.stage import Context


@dataclass(frozen=True)
class MakeCrops:
    """Makes `images` (C, 3, S, S) uint8 of a sample, the crops that a cache holds, and its number `index`.

    transform: the model's way with a picture.
    num_crops: C.
    seed: with the numbers of crop and sample it draws the crop.
    """

    transform: ImageTransform
    num_crops: int
    seed: int

    def __call__(self, sample: Sample, seed: SampleSeed) -> dict[str, Tensor]:
        """The tensors of one sample; raises BadSample."""
        image = decode_image(sample.image, sample.key, max_pixels=self.transform.max_pixels)
        seeds = (sample_seed(self.seed, crop, seed.index) for crop in range(self.num_crops))
        crops = [to_tensor(self.transform.apply(image, crop_seed)) for crop_seed in seeds]
        return {"images": torch.stack(crops), "index": torch.tensor(seed.index)}


def fill(
    writer: CacheWriter,
    ctx: Context,
    source: Source,
    make: MakeCrops,
    ask: Callable[[Batch], Tensor],
    *,
    batch_size: int,
    workers: int,
    max_bad_fraction: float,
) -> None:
    """Writes down what is said of all samples that are still to come.

    Args:
        writer: takes the tensors; its shards that are whole are kept.
        ctx: is told of progress and bad samples, those before a crash too.
        source: the samples.
        make: their crops.
        ask: tensors of a batch's crops, as many numbers as (samples, C, ...) of the writer's shape.
        batch_size: samples at once.
        workers: processes that read and decode.
        max_bad_fraction: the share of bad samples that is put up with.

    Raises:
        UserError: too many samples are bad, or a tensor is not finite.
    """
    plan = writer.plan(batch_size)
    for told in writer.bad:  # before a crash
        ctx.skip(*told)
    for samples, batch in zip(plan, ordered_batches(source, make, plan, workers=workers), strict=True):
        tensors = {}
        if batch["keys"]:
            rows = ask(batch).float().cpu().reshape(-1, writer.num_crops, *writer.shape).numpy()
            tensors = dict(zip(batch["index"].tolist(), rows, strict=True))
        for told in batch["bad"]:
            ctx.skip(*told)
        if samples.stop >= ENOUGH_TO_JUDGE or samples.stop == len(source):
            check_bad(ctx.stage, ctx.bad, samples.stop, max_bad_fraction)
        writer.write(samples, tensors, batch["bad"])
        ctx.progress(samples.stop, len(source), "images")
