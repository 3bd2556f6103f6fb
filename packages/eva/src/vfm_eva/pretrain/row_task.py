"""Masked feature modelling on rows of images of different sizes: the task, and the training data."""

# B images of a grid, N patches of an image, T patches of a row, K predicted patches of a row, Tw width of the target

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from vfm.data import Batch, TrainingData
from vfm.train import Metrics, relative_weights
from vfm_eva.pretrain.naflex.images import MakeStrips, NativeCrop, StripOf, images_by_grid
from vfm_eva.pretrain.naflex.packing import Grid, by_grid, take
from vfm_eva.pretrain.naflex.rows import RowData, RowInputs, Rows
from vfm_eva.pretrain.naflex.student import decode_row, encode_row
from vfm_eva.pretrain.objective import TeacherFeatures
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.pretrain.students.masking import masked
from vfm_eva.pretrain.task import EvaInputs, EvaTask
from vfm_eva.targets.teacher import Teacher

__all__ = ["RowTask", "row_data", "row_features"]


class RowTask(EvaTask):
    """EVA's pre-training on rows: a row is computed without padding, and its images do not see one another.

    A teacher sees each image with the student's rows and columns of patches, at its own patch size. Square images, as
    in evaluations and in the cost estimate, are computed as in `EvaTask`.
    """

    def forward(self, inputs: RowInputs | EvaInputs) -> tuple[Tensor, Metrics]:
        """Compute the loss of a row, the mean over its predicted patches, and metrics."""
        if isinstance(inputs, EvaInputs):
            return super().forward(inputs)
        targets = []
        for number in range(len(self.objectives)):
            targets.append(TeacherFeatures(self.features_to_fit(inputs, number)[:, inputs.index]))
        tokens = self.row_tokens(inputs)[:, inputs.index]
        counted = torch.ones_like(inputs.index, dtype=torch.bool)[None]
        return self.compared(tokens, None, targets, counted, inputs.bool_mask)

    def row_tokens(self, inputs: RowInputs) -> Tensor:
        """Compute the head's input for every patch of a row, (1, T, D)."""
        student: Any = self.student
        strip = inputs.strips[0]
        assert strip is not None
        pixels = self.preprocess.pixels(strip)
        if self.decoder:
            assert inputs.visible is not None
            encoded = encode_row(student, pixels, inputs.grids, inputs.visible)
            encoded = tuple(student.fc_norm(image) for image in encoded)
            return decode_row(self.decoder, encoded, inputs.grids, inputs.visible, self.mask_token)
        with masked(student, self.mask_token, inputs.bool_mask) if self.is_masked else nullcontext():
            encoded = encode_row(student, pixels, inputs.grids)
        patches = torch.cat([image[student.num_prefix_tokens :] for image in encoded])
        normed: Tensor = student.fc_norm(patches[None])
        return normed

    def features_to_fit(self, inputs: RowInputs | EvaInputs, number: int) -> Tensor:
        """Compute a teacher's features of a row, (1, T, Tw)."""
        if isinstance(inputs, EvaInputs):
            return super().features_to_fit(inputs, number)
        return row_features(self.objectives[number].teacher, inputs.strip_of(number), inputs.grids)

    def micro_batch_weights(self, micro_batches: Sequence[Batch[Any]]) -> Tensor | None:
        """Compute the predicted patches per image of each row, relative to the mean of the step.

        Every predicted patch of the step then has the same weight, however the images are packed.
        """
        counts = []
        for batch in micro_batches:
            index = batch.inputs.index
            counts.append(index.new_full((), len(index)))
        return relative_weights(torch.stack(counts).float(), micro_batches)


def row_features(teacher: Teacher, strip: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Compute a teacher's features of all patches of a row, (1, T, Tw), with one pass for the images of each grid.

    So there is no padding, and a teacher may be any vision transformer of timm or open_clip.
    """
    features: dict[int, Tensor] = {}
    numbers = by_grid(grids)
    for grid, images in images_by_grid(strip, grids).items():
        features |= zip(numbers[grid], teacher.features_at_size(images), strict=True)
    return torch.cat(take(features, sorted(features)))[None]


def row_data(config: EvaPretrain, task: RowTask, samples: Any) -> RowData:
    """Create the steps of a training on rows: each image as the student and each teacher see it, masked and packed."""
    assert config.naflex
    own = StripOf.of(task.preprocess, task.grid)
    teachers = []
    for objective in task.objectives:
        teachers.append(StripOf.of(objective.teacher.preprocess, objective.teacher.grid))
    crop_scale = config.augmentation.crop_scale
    crop = NativeCrop(own.patch_size, tuple(config.naflex.seq_lens), crop_scale, config.augmentation.flip)
    student: Any = task.student
    rows = Rows(
        config.mask.ratio,
        config.mask.build,
        student.num_prefix_tokens,
        config.naflex.row_tokens,
        visible_only=config.encode == "visible",
    )
    return RowData(TrainingData.of(config, samples, MakeStrips(crop, own, tuple(teachers))), rows)
