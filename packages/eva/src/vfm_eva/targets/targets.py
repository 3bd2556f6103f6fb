"""The work of `eva.targets`: write a teacher's features for all crops of a dataset to a cache."""

# C crops of a sample, T target width, n components

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vfm.data import (
    CACHE_FOLDER,
    CacheWriter,
    MakeCrops,
    SampleCrops,
    Source,
    fill_cache,
    open_dataset,
    ordered_batches,
)
from vfm.plugin import Context, Preflight, SampleCache, UserError
from vfm.train import prepare_device
from vfm_eva.targets.images import crop_transform
from vfm_eva.targets.pca import FILE, Pca
from vfm_eva.targets.stages import EvaTargets
from vfm_eva.targets.target_checks import check_teacher
from vfm_eva.targets.teacher import Teacher, load_teacher


def check_eva_targets(config: EvaTargets, ctx: Preflight) -> None:
    """Check that a teacher has the target, and a known one at least as many channels as components.

    Raises:
        UserError: If it does not.
    """
    check_teacher(config.teacher, config.target, ctx)
    checkpoint = ctx.artifact(config.teacher)
    if checkpoint:
        teacher = load_teacher(checkpoint, config.target)
        _check_components(config, teacher)
        teacher.module.to("meta")
        size = teacher.preprocess.image_size
        teacher.features(torch.zeros(1, 3, size, size, dtype=torch.uint8, device="meta"), config.grid)


def compute_targets(config: EvaTargets, ctx: Context) -> SampleCache:
    """Write the features shard by shard. After a crash the next run resumes at the unfinished shard."""
    data = ctx.load(config.data)
    checkpoint = ctx.load(config.teacher)
    teacher = load_teacher(checkpoint, config.target, bf16=config.precision == "amp_bf16")
    _check_components(config, teacher)
    device = prepare_device(config.runtime)
    teacher.module.to(device)
    source = open_dataset(data)
    crop_scale = config.augmentation.crop_scale
    flip = config.augmentation.flip
    make = MakeCrops(crop_transform(crop_scale, flip, teacher.preprocess), config.num_crops, config.seed)

    def features(crops: SampleCrops) -> Tensor:
        """Compute features, (samples * C, N, T)."""
        parts = torch.split(crops.images.flatten(0, 1), config.micro_batch_size)
        return torch.cat([teacher.features(part.to(device), config.grid) for part in parts])

    def coordinates(crops: SampleCrops) -> Tensor:
        assert pca
        return pca.coordinates(features(crops))

    # The basis is fitted before the first shard, because all shards must use the same one.
    if config.components:
        pca = _pca(config, ctx, source, make, features).to(device)
    else:
        pca = None
    writer = CacheWriter(
        ctx.work / CACHE_FOLDER,
        num_samples=data.num_samples,
        num_crops=config.num_crops,
        shape=(*config.grid, config.components or teacher.width),
        dtype=config.dtype,
        samples_per_shard=config.samples_per_shard,
    )
    fill_cache(
        writer,
        ctx,
        source,
        make,
        coordinates if pca else features,
        # A batch has all crops of its samples, so it has fewer samples than a micro-batch has images.
        batch_size=max(1, config.micro_batch_size // config.num_crops),
        workers=config.runtime.num_workers,
        max_bad_fraction=config.max_bad_fraction,
    )
    if pca:
        pca.save(ctx.directory)
    return writer.publish(
        ctx.directory,
        data=data.reference(ctx.directory),
        producer=f"{checkpoint.reference(ctx.directory)} {config.target.model_dump_json()}",
        basis=FILE if pca else "",
        crop_scale=crop_scale,
        flip=flip,
        seed=config.seed,
    )


def _pca(
    config: EvaTargets, ctx: Context, source: Source, make: MakeCrops, features: Callable[[SampleCrops], Tensor]
) -> Pca:
    """Fit a PCA to the features of some images, or load the one that an interrupted run left in the work folder.

    Raises:
        UserError: If there are fewer patches than components.
    """
    if (ctx.work / FILE).is_file():
        return Pca.load(ctx.work)
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: config.pca_images]
    plan = [range(index, index + 1) for index in sorted(chosen.tolist())]  # batches of one image, in reading order
    batches = ordered_batches(source, make, plan, workers=config.runtime.num_workers)
    pca = Pca.fit((features(batch.inputs) for batch in batches if batch.keys), config.components or 0)
    pca.save(ctx.work)
    ctx.log(f"{config.components} components keep {pca.kept:.1%} of the variance of {len(chosen)} images' features")
    return pca


def _check_components(config: EvaTargets, teacher: Teacher) -> None:
    if config.components and config.components > teacher.width:
        raise UserError(
            f"{config.name}: components must be at most {teacher.width}, the channels of the teacher's features;"
            f" got {config.components}"
        )
