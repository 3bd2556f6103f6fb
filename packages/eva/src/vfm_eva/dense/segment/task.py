"""Segmentation as a task for `vfm.train.fit`, with layer-wise learning-rate decay."""

# B images, M segments of an image

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from vfm.data import Batch
from vfm.models import vision_preprocess
from vfm.plugin import DenseCheckpoint, Trained
from vfm.train import Call, Metrics, Task, prepare_towers
from vfm_eva.dense.segment.maps import MapSegmenter, pixel_loss
from vfm_eva.dense.segment.matching import LossWeights
from vfm_eva.dense.segment.model import HeadRecord, Segmenter, save_segmenter
from vfm_eva.dense.segment.predict import SegmentPredictor
from vfm_eva.dense.segment.queries import QuerySegmenter, annealed
from vfm_eva.dense.segment.samples import SegmentInputs, unpack_masks
from vfm_eva.dense.segment.set_loss import PointSettings, Totals, set_loss
from vfm_eva.dense.segment.stages import QueriesSegmentation, UperNetSegmentation
from vfm_eva.finetune.classifier import encoder_tower, layer_of
from vfm_kernels import Kernels, accelerated, padded

ENCODER = "encoder.visual."
IN_BLOCK = re.compile(r"copies\.(\d+)\.")


class SegmentTask(Task[SegmentInputs]):
    """Trains a segmenter.

    Sums over objects, queries or pixels are divided by their numbers in the whole step, so that a step does not depend
    on how it is cut into micro-batches and processes.

    Args:
        model: The encoder and its head.
        record: The head's settings.
        class_names: Class names of the data.
        num_steps: Number of training steps, over which attention masks are annealed away.
        trained: Trainable weights of the encoder.
        encoder_rate: Learning rate of the encoder by step. None: the same as for the head.
        seed: Seed of LoRA's initial weights.
    """

    def __init__(
        self,
        model: Segmenter,
        record: HeadRecord,
        class_names: Sequence[str],
        *,
        num_steps: int,
        trained: Trained,
        encoder_rate: Callable[[int], float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.record = record
        self.class_names = list(class_names)
        self.num_steps = num_steps
        copies = [name for name, _ in model.named_parameters() if IN_BLOCK.match(name)]
        tower = encoder_tower(trained, model, "encoder.visual.blocks", _layer, new=copies, rate=encoder_rate)
        self.towers = [tower]
        self.merge = prepare_towers([tower], seed=seed)
        self.settings = record.settings
        self.preprocess = vision_preprocess(model.encoder.visual)
        self.keep: list[float] | None = None

    def forward(self, inputs: SegmentInputs) -> tuple[Tensor, Metrics]:
        """Compute the loss of a batch as if it were a whole step."""
        return self.step_loss(inputs, self.totals([inputs]))

    def step_loss(self, inputs: SegmentInputs, totals: Totals) -> tuple[Tensor, Metrics]:
        """Compute a micro-batch's share of the loss of a step, and the parts of the loss by name."""
        pixels = self.preprocess.pixels(inputs.images)
        compute = self._query_losses if self._has_queries else self._pixel_losses
        losses = compute(pixels, inputs, totals)
        return torch.stack(list(losses.values())).sum(), losses

    def totals(self, parts: Sequence[SegmentInputs]) -> Totals:
        """Compute the divisors of the loss sums.

        They are the totals of a step, divided by the number of processes.
        """
        if isinstance(self.settings, QueriesSegmentation):
            counts: list[int] = []
            for part in parts:
                counts.extend(map(len, part.labels.parts))
            totals = Totals.of(torch.tensor(counts), self.settings.num_queries, self.settings.loss.none)
        else:
            known = torch.stack([(part.semantic >= 0).sum() for part in parts if part.semantic is not None])
            totals = Totals(known.sum(), known.sum())
        # One transfer and one all-reduce for both.
        values = torch.stack([totals.objects.float(), totals.weights.float()])
        values = values.to(parts[0].images.device, non_blocking=True)
        if dist.is_initialized():
            dist.all_reduce(values)
            # DDP averages gradients over processes, so sums divided by the mean count give the sum over all by the
            # count of all.
            values /= dist.get_world_size()
        return Totals(*values)

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch[SegmentInputs]],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """Sum losses and gradients over all micro-batches of a step.

        Args:
            call: As in `Task.accumulate`.
            micro_batches: As in `Task.accumulate`.
            backward: As in `Task.accumulate`.
            reseed: As in `Task.accumulate`.
        """
        totals = self.totals([batch.inputs for batch in micro_batches])
        sums: Metrics = {}
        for index, batch in enumerate(micro_batches):
            reseed(index)
            loss, metrics = call(batch, self.step_loss, totals)
            backward(loss)
            for name, value in {**metrics, "loss": loss}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        return sums

    def before_step(self, step: int) -> None:
        """Set the probabilities with which queries attend only to their masks."""
        if isinstance(self.settings, QueriesSegmentation):
            count = self.settings.num_blocks
            self.keep = annealed(step, self.num_steps, count)

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the encoder."""
        return accelerated(choice, self)

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of the encoder."""
        return padded(self)

    def encoder(self) -> SegmentPredictor:
        """Wrap the segmenter as a predictor for evaluations."""
        return SegmentPredictor(self.model, self.record)

    def export(self, directory: Path) -> DenseCheckpoint:
        """Write encoder and head, with LoRA weights merged."""
        self.merge()
        return save_segmenter(self.model, self.record, directory, self.class_names)

    @property
    def _has_queries(self) -> bool:
        return isinstance(self.model, QuerySegmenter)

    def _query_losses(self, pixels: Tensor, inputs: SegmentInputs, totals: Totals) -> Metrics:
        assert isinstance(self.model, QuerySegmenter)
        assert isinstance(self.settings, QueriesSegmentation)
        predictions = self.model(pixels, self.keep or [0.0] * self.settings.num_blocks)
        with torch.autocast(pixels.device.type, enabled=False):
            masks = [unpack_masks(packed, pixels.shape[-1]) for packed in inputs.masks.parts]
            loss = self.settings.loss
            weights = LossWeights(loss.classes, loss.mask, loss.dice, loss.none)
            points = PointSettings(loss.num_points)
            return set_loss(predictions, inputs.labels.parts, masks, totals, weights, points)

    def _pixel_losses(self, pixels: Tensor, inputs: SegmentInputs, totals: Totals) -> Metrics:
        assert isinstance(self.model, MapSegmenter)
        assert inputs.semantic is not None
        scores = self.model(pixels)
        known = totals.objects.clamp(min=1)
        losses = {"pixel_loss": pixel_loss(scores[0], inputs.semantic) / known}
        if len(scores) > 1:
            assert isinstance(self.settings, UperNetSegmentation)
            losses["auxiliary_loss"] = self.settings.auxiliary * pixel_loss(scores[1], inputs.semantic) / known
        return losses


def _layer(name: str) -> int | None:
    """Find the layer of an encoder weight or of a copied block's weight.

    The rest of the head has no layer.
    """
    copied = IN_BLOCK.match(name)
    if copied:
        return int(copied[1]) + 1
    if not name.startswith(ENCODER):
        return None
    return layer_of(name.removeprefix(ENCODER))
