"""Asking a teacher about all crops of a data set, and writing down what it says."""

# C crops of a sample, T target width, n components

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vfm.artifacts import ImageDataset
from vfm.data.cache_filling import MakeCrops, fill
from vfm.data.eval_loader import ordered_batches
from vfm.data.loader import Batch
from vfm.data.sample_cache import CacheWriter
from vfm.data.source import open_dataset
from vfm.stage import Context
from vfm.train import resolve_device
from vfm_eva.images import crop_transform
from vfm_eva.pca import FILE, Pca
from vfm_eva.targets import EvaTargets
from vfm_eva.teacher import Teacher


class Asking:
    """One stage's teacher on its device, and the crops that it is asked about."""

    def __init__(self, plan: EvaTargets, ctx: Context, teacher: Teacher, data: ImageDataset) -> None:
        self.plan, self.ctx, self.teacher, self.source = plan, ctx, teacher, open_dataset(data)
        self.device = resolve_device(plan.runtime)
        teacher.module.to(self.device)
        self.make = MakeCrops(crop_transform(plan, teacher.preprocess), plan.num_crops, plan.seed)
        self.batch_size = max(1, plan.micro_batch_size // plan.num_crops)  # samples

    def fill(self, writer: CacheWriter, pca: Pca | None) -> None:
        """Writes down what the teacher says of all samples that are still to come.

        Raises:
            UserError: too many samples are bad, or a feature is not finite.
        """
        pca = pca.to(self.device) if pca else None

        def ask(batch: Batch) -> Tensor:
            features = self._features(batch)
            return pca.coordinates(features) if pca else features

        fill(
            writer,
            self.ctx,
            self.source,
            self.make,
            ask,
            batch_size=self.batch_size,
            workers=self.plan.runtime.workers,
            max_bad_fraction=self.plan.max_bad_fraction,
        )

    def pca(self) -> Pca:
        """Of the features of some images; the one that is in the work folder already, where there is one.

        Raises:
            UserError: fewer patches than components.
        """
        if (self.ctx.work / FILE).is_file():
            return Pca.load(self.ctx.work)
        chosen = np.random.default_rng(self.plan.seed).permutation(len(self.source))[: self.plan.pca_images]
        components = self.plan.components or 0
        batches = self._batches([range(index, index + 1) for index in sorted(chosen.tolist())])
        pca = Pca.fit((self._features(batch) for batch in batches if batch["keys"]), components)
        pca.save(self.ctx.work)
        self.ctx.log(f"{components} components keep {pca.kept:.1%} of the variance of {len(chosen)} images' features")
        return pca

    def _batches(self, plan: list[range]) -> Iterator[Batch]:
        return ordered_batches(self.source, self.make, plan, workers=self.plan.runtime.workers)

    def _features(self, batch: Batch) -> Tensor:
        """(samples * C, N, T)."""
        crops = batch["images"].flatten(0, 1).split(self.plan.micro_batch_size)
        return torch.cat([self.teacher.target(part.to(self.device), self.plan.grid) for part in crops])
