"""The work of `eval.masked_patches`: evaluate predictions of masked patches on images outside the training set.

Source: EVA's released code validates with a fixed mask of every second patch (arXiv:2211.07636).
"""

# B batch, N patches, I images

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.data import open_dataset
from vfm.eval import data_hash, encode_dataset
from vfm.models import PooledVision, Preprocess, read_masked_modelling
from vfm.plugin import Context, Difference, Evaluated, ModelResult, Preflight, UserError
from vfm.statistics import paired_resamples
from vfm.train import leave_to_first
from vfm_eva.pretrain.held_out_checks import check_width
from vfm_eva.pretrain.held_out_stages import MaskedPatches
from vfm_eva.pretrain.stages import EvaPretrain
from vfm_eva.pretrain.task import EvaTask, TaskEncoder
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.target_checks import check_teacher
from vfm_eva.targets.teacher import Teacher, load_teacher

__all__ = ["check_masked_patches", "evaluate_masked_patches", "every_second_patch"]

_HAS_DECODER = "has a decoder, which is evaluated in its training only"
_EXPECTED = "expected an encoder of eva.pretrain with encode: all"
NUM_RESAMPLES = 1000  # of the images
ENDS = (0.025, 0.975)  # of a 95 % interval


def check_masked_patches(config: MaskedPatches, ctx: Preflight) -> None:
    """Check that the teacher has the target, and that known models have a head of its width.

    Raises:
        UserError: The first mistake.
    """
    if config.models and not config.teacher:
        raise UserError("models need the teacher whose features they predict; set teacher")
    if config.teacher:
        check_teacher(config.teacher, config.target, ctx)
    checkpoint = ctx.artifact(config.teacher) if config.teacher and config.models else None
    teacher = load_teacher(checkpoint, config.target) if checkpoint else None
    for ref in config.models:
        model = ctx.artifact(ref)
        maker = ctx.stage(ref)
        if model:
            added = _token_and_head(read_masked_modelling(model.path), ref)
            if teacher:
                check_width(len(added["head.weight"]), teacher.width, ref)
        elif isinstance(maker, EvaPretrain) and maker.encode == "visible":
            raise UserError(f"{ref}: {_HAS_DECODER}; {_EXPECTED}")


def evaluate_masked_patches(config: MaskedPatches, ctx: Context, encoders: Mapping[str, Any]) -> Evaluated:
    """Evaluate encoders by the mean cosine between prediction and target over masked patches.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        encoders: Models by name.

    Raises:
        UserError: If an encoder has no mask token and head, or there is no teacher.
    """
    if config.teacher:
        teacher = load_teacher(ctx.load(config.teacher), config.target)
    else:
        teacher = None
    paths = {}
    for ref in config.models:
        name = str(ref).rstrip("/").rsplit("/", 1)[-1]
        paths[name] = ctx.load(ref).path
    predictors = {}
    for name, encoder in encoders.items():
        task = encoder.task if isinstance(encoder, TaskEncoder) else None
        if task is None:
            if name not in paths or teacher is None:
                raise UserError(
                    f"{name}: eval.masked_patches evaluates a student in eva.pretrain, or models with a teacher"
                )
            added = _token_and_head(read_masked_modelling(paths[name]), name)
            check_width(len(added["head.weight"]), teacher.width, name)
            task = _task_of(encoder, added, teacher)
        predictors[name] = MaskedCosineEncoder(task, teacher)
    data = ctx.load(config.data)
    images = encode_dataset(ctx, open_dataset(data), predictors, config.reading)
    leave_to_first()
    keys = [sample.key for sample in images.samples]
    results = {}
    for name, predictor in predictors.items():
        cosines = images.features[name][:, 0].double().numpy()
        score = MeanScore("masked_cosine", cosines)
        predictor.task.held_out_alarm.check(ctx, score.value)
        results[name] = ModelResult([score], {"images": {"key": keys, "masked_cosine": cosines}})
    return Evaluated(data_hash(data, images.digests), results)


@dataclass(frozen=True)
class MaskedCosineEncoder:
    """A student wrapped as an image encoder with a single feature, the mean cosine of the masked patches."""

    task: EvaTask
    teacher: Teacher | None = None  # None: the task's teacher

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Compute the mean cosine of each image's masked patches, (I, 1) on the CPU."""
        task = self.task
        device = self.task.mask_token.device
        teacher = self.teacher or task.teacher
        if not isinstance(teacher, Teacher):
            raise UserError(
                "eval.masked_patches: the training has stored targets; set teacher, whose features they are"
            )
        teacher.module.to(device)
        was_training = task.training
        task.eval()
        parts = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            student_images = _fitted(chunk, task.preprocess).to(device)
            teacher_images = _fitted(chunk, teacher.preprocess).to(device)
            bool_mask = every_second_patch(task.grid).to(device).expand(len(chunk), -1)
            # The same mask for every image and run, so that scores differ by the student alone.
            inputs = EvaInputs(student_images, bool_mask, teacher_images)
            parts.append(task.masked_cosines(inputs, teacher.targets(inputs, task.grid)).float().cpu())
        task.train(was_training)
        return torch.cat(parts)[:, None]


def every_second_patch(grid: tuple[int, int]) -> Tensor:
    """Build EVA's validation mask, (1, N): every second patch in row order is masked."""
    return (torch.arange(grid[0] * grid[1]) % 2 == 0)[None]


def _fitted(images: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    return torch.from_numpy(np.stack([preprocess.fit(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def _task_of(encoder: PooledVision, added: Mapping[str, Tensor], teacher: Teacher) -> EvaTask:
    task = EvaTask(encoder.module, teacher, is_masked="mask_token" in added)
    task.load_masked_modelling(added)
    return task.to(next(encoder.module.parameters()).device)


def _token_and_head(added: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    if not added or any(key.startswith("decoder.") for key in added):
        problem = _HAS_DECODER if added else "has no mask token and head"
        raise UserError(f"{name}: {problem}; {_EXPECTED}")
    names = ("mask_token", "head.weight", "head.bias")  # the first teacher's head
    return {key: added[key] for key in names if key in added}  # no mask token after a training without masks


@dataclass(frozen=True)
class MeanScore:
    """A metric of a model with one value per image, `values`, (I,). Models are compared on the same images."""

    metric: str
    values: NDArray[np.float64]
    chance: float | None = None

    @property
    def value(self) -> float:
        """Mean of the values."""
        return float(self.values.mean())

    @property
    def num_independent(self) -> int:
        """Number of images."""
        return len(self.values)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Compute the 95 % bootstrap interval: percentiles of the mean over resampled images."""
        low, high = np.quantile(_means(self.values, seed), ENDS).tolist()
        return low, high

    def difference(self, baseline: MeanScore, seed: int = 0) -> Difference:
        """Compare with a baseline, as `paired_resamples` does."""
        return paired_resamples(_means(self.values - baseline.values, seed), len(self.values))


def _means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    rows = np.random.default_rng(seed).integers(0, len(values), (NUM_RESAMPLES, len(values)))
    means: NDArray[np.float64] = values[rows].mean(axis=1)
    return means
