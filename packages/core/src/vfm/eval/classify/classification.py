"""Classification results, with one class or several labels per image, for probes, neighbours, zero-shot and heads."""

# N images, C classes or labels

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import open_dataset, read_tags
from vfm.eval.base import ReadSettings
from vfm.eval.encode.features import Encoded, encode_dataset, encode_labeled
from vfm.eval.encode.ranking import hits_at, label_ranks
from vfm.eval.encode.row_files import RowFile
from vfm.interfaces import Context, ImageDataset, LabeledDataset, ModelResult, TaggedImages
from vfm.models import ImageEncoder
from vfm.statistics import Accuracy, MeanAveragePrecision

ClassDataset = LabeledDataset | TaggedImages  # one class, or several labels per image
EMPTY_NAMED = 5  # classes without an image that a warning names


def encode_with_targets(
    ctx: Context,
    encoders: Mapping[str, ImageEncoder],
    data: ClassDataset,
    reading: ReadSettings,
    files: Mapping[str, RowFile] | None = None,
) -> tuple[Encoded, Tensor]:
    """Encode a dataset and read the target of each image.

    Classes without any image are reported in a warning.

    Args:
        ctx: Context of the stage.
        encoders: Models by name.
        data: The dataset.
        reading: Batch size and tolerance of bad samples.
        files: Files for the features of a model. Default: they are in memory.

    Returns:
        Features, and classes (N,), or labels (N, C) bool.
    """
    if isinstance(data, LabeledDataset):
        images = encode_labeled(ctx, encoders, data, reading, files)
        targets = torch.from_numpy(images.labels)
        present = torch.bincount(targets, minlength=len(data.class_names)) > 0
    else:
        source = open_dataset(ImageDataset.load(data.linked(data.data)))
        images = encode_dataset(ctx, source, encoders, reading, files=files)
        targets = torch.from_numpy(read_tags(data)[images.numbers])
        present = targets.any(dim=0)
    empty = [repr(name) for name, exists in zip(data.class_names, present.tolist(), strict=True) if not exists]
    if empty:
        some = ", ".join(empty[:EMPTY_NAMED])
        if len(empty) > EMPTY_NAMED:
            some += ", ..."
        ctx.warn(f"{ctx.name_of(data)}: {len(empty)} of {len(data.class_names)} classes have no image: {some}")
    return images, targets


def result_from_scores(
    scores: NDArray[np.floating],
    targets: Tensor,
    keys: Sequence[str],
    data: ClassDataset,
    prefix: str,
    details: Mapping[str, object],
) -> ModelResult:
    """Build the result of a model from its scores for all images and classes or labels.

    Args:
        scores: (N, C).
        targets: Classes, (N,), or labels, (N, C) bool.
        keys: Keys of the images.
        data: The dataset. It has the class names.
        prefix: Prefix of the metric names, such as `lp_`.
        details: Additional entries for the result file.
    """
    if isinstance(data, TaggedImages):
        metric = f"{prefix}map" if prefix else "mean_average_precision"  # CLIP_benchmark's name
        positives = targets.numpy()
        means = [MeanAveragePrecision(metric, scores, positives)]
        for group, members in data.class_groups.items():
            if positives[:, members].any():
                means.append(MeanAveragePrecision(f"{metric}/{group}", scores[:, members], positives[:, members]))
        labels = [row.nonzero().flatten().tolist() for row in targets]
        columns = {"key": list(keys), "labels": labels, "scores": list(scores.astype(np.float32))}
        return ModelResult(means, {"images": columns}, details)
    ranks = label_ranks(torch.from_numpy(scores), targets)
    return result_from_ranks(ranks, scores.argmax(axis=1), targets.numpy(), keys, data, prefix, details)


def result_from_ranks(
    ranks: NDArray[np.int64],
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    keys: Sequence[str],
    data: LabeledDataset,
    prefix: str,
    details: Mapping[str, object],
    *,
    num_answers: int | None = None,
) -> ModelResult:
    """Build the result of a model from the ranks of the true classes.

    Args:
        ranks: Rank of each image's true class, (N,).
        predicted: Predicted class of each image, (N,).
        labels: true class of each image, (N,).
        keys: Keys of the images.
        data: The dataset. It has the class names.
        prefix: Prefix of the metric names, such as `lp_`.
        details: Additional entries for the result file.
        num_answers: Number of classes that could be predicted, for the chance level. Default: all classes.
    """
    top1 = hits_at(ranks, 1)
    among = num_answers or len(data.class_names)
    scores = _class_scores(top1, hits_at(ranks, 5), labels, among, prefix)
    scores += _group_scores(top1, labels, data, among, prefix)
    columns = {"key": keys, "label": labels, "predicted": predicted, "rank": ranks}
    return ModelResult(scores, {"images": columns}, details)


def _class_scores(
    top1: NDArray[np.bool_], top5: NDArray[np.bool_], labels: NDArray[np.int64], num_classes: int, prefix: str
) -> list[Accuracy]:
    """Compute top-1, top-5 (with more than five classes) and mean per class recall."""
    scores = [Accuracy(f"{prefix}acc1", top1, chance=1 / num_classes)]
    if num_classes > 5:
        scores.append(Accuracy(f"{prefix}acc5", top5, chance=5 / num_classes))
    scores.append(Accuracy(f"{prefix}mean_per_class_recall", top1, classes=labels, chance=1 / num_classes))
    return scores


def _group_scores(
    top1: NDArray[np.bool_], labels: NDArray[np.int64], data: LabeledDataset, num_classes: int, prefix: str
) -> list[Accuracy]:
    """Compute top-1 on the images of each group of classes, such as the tail. All classes can be predicted."""
    scores = []
    for group, members in data.class_groups.items():
        rows = np.isin(labels, members)
        if rows.any():
            scores.append(Accuracy(f"{prefix}acc1/{group}", top1[rows], chance=1 / num_classes))
    return scores
