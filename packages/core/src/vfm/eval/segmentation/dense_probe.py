"""Semantic segmentation from frozen patch tokens, by a linear layer or by nearest neighbours.

Each image is squashed to the encoder's square, so that all encoders, including CLIP vision towers, see it in the same
way. Labels are compared at their full resolution. Without training images the evaluation is cross-validated: each image
is predicted by a head that was not trained on it.
"""

# N images, D width, h and w rows and columns of patches

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vfm.base import UserError
from vfm.eval.dense.checks import check_semantic
from vfm.eval.dense.dense_panels import add_map_panels
from vfm.eval.dense.stages import DenseProbe
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash, warn_of_overlap
from vfm.eval.segmentation.dense_features import DenseImages, read_dense
from vfm.eval.segmentation.patch_head import HeadTraining, predict_map, train_head
from vfm.eval.segmentation.patch_neighbours import remember_patches
from vfm.eval.segmentation.segmentation import check_labelled, iou_panel, pixel_table, worst_images
from vfm.interfaces import Context, Evaluated, ModelResult
from vfm.statistics.mean_iou import MeanIou, count_pixels
from vfm.train import resolve_device
from vfm.train.parallel.sharing import leave_to_first

VALIDATION = 5  # every fifth training image is used to choose the learning rate


@dataclass(frozen=True)
class TrainedProbe:
    """The heads trained for one model.

    There is one in total or one per fold, with the images that each predicts.
    """

    heads: list[tuple[nn.Module, NDArray[np.int64]]]
    lrs: list[float]

    def predict(self, name: str, images: DenseImages, device: torch.device, row: int) -> NDArray[np.int64]:
        """Predict the class of each pixel of an image."""
        head = next(head for head, rows in self.heads if row in rows)
        size: tuple[int, int] = images.labels[row].shape
        return predict_map(head, images.maps[name], row, size, device)


def evaluate_dense_probe(config: DenseProbe, ctx: Context, encoders: Mapping[str, Any]) -> Evaluated:
    """Evaluate encoders by mean IoU with `train_head` or `remember_patches`, all on the same images.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        encoders: Models by name.

    Raises:
        UserError: If an encoder has no patch tokens, the classes of `train` differ, there are too few images, or no
            pixel is labelled.
    """
    data = ctx.load(config.data)
    train = ctx.load(config.train) if config.train else None
    check_semantic(config, data, train)
    device = resolve_device(config.runtime)
    num_classes = len(data.class_names)
    with ExitStack() as opened:
        test = read_dense(config, ctx, encoders, data, "test", device, opened)
        if train:
            known = read_dense(config, ctx, encoders, train, "train", device, opened)
        else:
            known = None
        leave_to_first()
        if known:
            warn_of_overlap(ctx, known.image_digests, test.image_digests)
        results: dict[str, ModelResult] = {}
        scored: dict[str, MeanIou] = {}
        predict: dict[str, Callable[[int], NDArray[np.int64]]] = {}
        for name in encoders:
            probe = _train(config, name, test, known, num_classes, device)
            predict[name] = partial(probe.predict, name, test, device)
            counts = []
            for row, labels in enumerate(test.labels):
                counts.append(count_pixels(labels, predict[name](row), num_classes))
                ctx.progress(len(results) * len(test.labels) + row + 1, len(encoders) * len(test.labels), "predictions")
            scored[name] = MeanIou.of(counts)
            check_labelled(config.data, scored[name])
            scores = scored[name].scores("dense_knn_" if config.neighbours else "dense_", config.num_resamples)
            if config.neighbours:
                method = config.neighbours.model_dump()
            else:
                method = {"lrs": probe.lrs, "steps": config.steps}
            details = {"resize_mode": "squash", "layers": config.layers, **method}
            results[name] = ModelResult(scores, {"images": pixel_table(test.keys, scored[name])}, details)
        ctx.panel(iou_panel(data.class_names, scored))
        _add_worst(ctx, test, next(iter(scored.values())), predict)
        return Evaluated(data_hash(data, test.digests), results)


def folds_of(count: int, folds: int, seed: int) -> NDArray[np.int64]:
    """Assign each image to a fold, (count,), with sizes that differ by at most one."""
    fold = np.arange(count) % folds
    return np.asarray(np.random.default_rng(seed).permutation(fold))


def _train(
    config: DenseProbe,
    name: str,
    test: DenseImages,
    known: DenseImages | None,
    num_classes: int,
    device: torch.device,
) -> TrainedProbe:
    probe = TrainedProbe([], [])
    for rows, tested, images in _splits(config, test, known):
        if config.neighbours:
            maps = images.maps[name]
            labels = images.labels
            settings = config.neighbours
            memory = remember_patches(maps, labels, rows, num_classes, settings, config.seed, device)
            probe.heads.append((memory, tested))
            continue
        lr = _best_rate(config, images, name, rows, num_classes, device)
        head = train_head(images.maps[name], images.labels, rows, num_classes, lr, _training(config), device)
        check_finite(head.classify.weight.detach(), f"{name}: the probe's weights", test.source.dataset.class_names)
        probe.heads.append((head, tested))
        probe.lrs.append(lr)
    return probe


def _add_worst(
    ctx: Context, test: DenseImages, counts: MeanIou, predict: Mapping[str, Callable[[int], NDArray[np.int64]]]
) -> None:
    numbers = []
    truth = []
    maps = defaultdict(list)
    for row in worst_images(counts):
        numbers.append(test.numbers[row])
        truth.append(test.labels[row])
        for name, predict_row in predict.items():
            maps[name].append(predict_row(row))
    add_map_panels(ctx, test.source, numbers, truth, maps)


def _splits(
    config: DenseProbe, test: DenseImages, known: DenseImages | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], DenseImages]]:
    """Yield the rows to train on, the rows to predict, and the images that the training rows refer to."""
    everything = np.arange(len(test.numbers))
    if known:
        yield np.arange(len(known.numbers)), everything, known
        return
    if len(everything) < config.folds:
        raise UserError(
            f"{config.data}: {len(everything)} usable images, expected at least one for each of {config.folds} folds"
        )
    fold = folds_of(len(everything), config.folds, config.seed)
    for number in range(config.folds):
        yield everything[fold != number], everything[fold == number], test


def _best_rate(
    config: DenseProbe, images: DenseImages, name: str, rows: NDArray[np.int64], num_classes: int, device: torch.device
) -> float:
    """Choose the learning rate with the best mean IoU on a part of the training images, the smallest among equals."""
    if len(config.lrs) == 1:
        return config.lrs[0]
    held_out = rows[::VALIDATION]
    rest = np.setdiff1d(rows, rows[::VALIDATION])
    if not len(rest):
        where = config.train or config.data
        raise UserError(f"{where}: expected two or more training images to choose among lrs, got {len(rows)}")
    quality = {}
    for lr in sorted(config.lrs):
        head = train_head(images.maps[name], images.labels, rest, num_classes, lr, _training(config), device)
        counts = []
        for row in held_out.tolist():
            truth = images.labels[row]
            predicted = predict_map(head, images.maps[name], row, truth.shape, device)
            counts.append(count_pixels(truth, predicted, num_classes))
        quality[lr] = MeanIou.of(counts).scores()[0].value
    return max(quality, key=quality.__getitem__)


def _training(config: DenseProbe) -> HeadTraining:
    return HeadTraining(config.steps, config.train_batch_size, config.weight_decay, config.seed)
