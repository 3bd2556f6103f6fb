"""What is right for each image of a set, one class or several labels, and the judgement of scores by it."""

# N images, C classes or labels

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.artifacts import ImageDataset, LabeledDataset, TaggedImages
from vfm.data import BadSample, Sample, open_dataset
from vfm.data.tags import read_tags
from vfm.eval.average_precision import RankingVerdict, average_precisions
from vfm.eval.compare import Verdict
from vfm.eval.encode import Encoded, ImageEncoder, Reading, encode_dataset
from vfm.eval.judgement import Judgement
from vfm.eval.ranking import hits_at, label_ranks
from vfm.panels import TablePanel
from vfm.stage import Context

Answered = LabeledDataset | TaggedImages
HARDEST = 12  # classes shown
EMPTY_NAMED = 5  # classes without an image that a warning names


def encode_answered(
    ctx: Context, models: Mapping[str, ImageEncoder], data: Answered, reading: Reading
) -> tuple[Encoded, Tensor]:
    """Features of a set's images, and what is right for each: its class, (N,), or which labels it has, (N, C) bool.

    Classes without any image are warned of.
    """
    if isinstance(data, LabeledDataset):
        images = encode_labeled(ctx, models, data, reading)
        answers = torch.from_numpy(labels_of(images))
        present = torch.bincount(answers, minlength=len(data.class_names)) > 0
    else:
        images = encode_dataset(ctx, open_dataset(ImageDataset.load(data.linked(data.data))), models, reading)
        answers = torch.from_numpy(read_tags(data)[images.numbers])
        present = answers.any(dim=0)
    if empty := [repr(name) for name, there in zip(data.class_names, present.tolist(), strict=True) if not there]:
        ctx.warn(f"{_called(ctx, data)}: {len(empty)} of {len(data.class_names)} classes have no image: {_some(empty)}")
    return images, answers


def _called(ctx: Context, data: Answered) -> str:
    """How the recipe names a data set."""
    return next((name for name, path in ctx.inputs.items() if path == data.path), data.path.name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:EMPTY_NAMED]) + (", ..." if len(names) > EMPTY_NAMED else "")


def judged(
    scores: NDArray[np.floating],
    answers: Tensor,
    keys: Sequence[str],
    data: Answered,
    prefix: str,
    details: Mapping[str, object],
) -> Judgement:
    """From the score of each class or label for each image, (N, C)."""
    if isinstance(data, TaggedImages):
        metric = f"{prefix}map" if prefix else "mean_average_precision"  # CLIP_benchmark's name
        verdict = RankingVerdict(metric, scores, answers.numpy())
        columns = {"key": list(keys), "labels": _places(answers), "scores": list(scores.astype(np.float32))}
        return Judgement([verdict], {"images": columns}, details)
    ranks = label_ranks(torch.from_numpy(scores), answers)
    return judged_ranks(ranks, scores.argmax(axis=1), answers.numpy(), keys, data, prefix, details)


def judged_ranks(
    ranks: NDArray[np.int64],
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    keys: Sequence[str],
    data: LabeledDataset,
    prefix: str,
    details: Mapping[str, object],
    *,
    num_answers: int | None = None,
) -> Judgement:
    """From the rank of each image's own class among those that may be answered (all), and the class it was taken for.

    Both are (N,).
    """
    among = num_answers or len(data.class_names)
    verdicts = class_verdicts(hits_at(ranks, 1), hits_at(ranks, 5), labels, among, prefix=prefix)
    verdicts += group_verdicts(hits_at(ranks, 1), labels, data, among, prefix=prefix)
    columns = {"key": keys, "label": labels, "predicted": predicted, "rank": ranks}
    return Judgement(verdicts, {"images": columns}, details)


def hardest(data: Answered, answers: Tensor, judgements: Mapping[str, Judgement]) -> TablePanel:
    """The classes that the last model knows worst, or the average precision of every label."""
    if isinstance(data, LabeledDataset):
        return hardest_classes(data.class_names, answers.numpy(), judgements)
    positives = answers.numpy()
    by_model = {
        model: average_precisions(np.stack(judgement.predictions["images"]["scores"]), positives)
        for model, judgement in judgements.items()
    }
    rows: list[list[str | float | int | None]] = [
        [name, int(positives[:, c].sum()), *(round(100 * float(found[c]), 1) for found in by_model.values())]
        for c, name in enumerate(data.class_names)
        if positives[:, c].any()
    ]
    columns = ["label", "images", *(f"{model}, average precision, %" for model in by_model)]
    return TablePanel(title="Average precision by label", order=40, columns=columns, rows=rows)


def _places(answers: Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in answers]


def encode_labeled(ctx: Context, models: Mapping[str, ImageEncoder], data: LabeledDataset, reading: Reading) -> Encoded:
    """Features of a labelled set; a sample without a label is a bad one."""

    def check(sample: Sample) -> None:
        if sample.label is None:
            raise BadSample("missing_label", sample.key)

    return encode_dataset(ctx, open_dataset(data), models, reading, check=check)


def labels_of(images: Encoded) -> NDArray[np.int64]:
    """The class of each image, (N,)."""
    return np.array([sample.label for sample in images.samples], dtype=np.int64)


def class_verdicts(
    top1: NDArray[np.bool_], top5: NDArray[np.bool_], labels: NDArray[np.int64], num_classes: int, *, prefix: str = ""
) -> list[Verdict]:
    """Top-1, top-5 (where there are more than five classes) and mean per class recall."""
    verdicts = [Verdict(f"{prefix}acc1", top1, chance=1 / num_classes)]
    if num_classes > 5:
        verdicts.append(Verdict(f"{prefix}acc5", top5, chance=5 / num_classes))
    verdicts.append(Verdict(f"{prefix}mean_per_class_recall", top1, classes=labels, chance=1 / num_classes))
    return verdicts


def group_verdicts(
    top1: NDArray[np.bool_], labels: NDArray[np.int64], data: LabeledDataset, num_classes: int, *, prefix: str = ""
) -> list[Verdict]:
    """Top-1 of the images of each group of classes (the tail, say); all classes may be answered."""
    groups = [(group, np.isin(labels, members)) for group, members in data.class_groups.items()]
    return [
        Verdict(f"{prefix}acc1/{group}", top1[those], chance=1 / num_classes) for group, those in groups if those.any()
    ]


def hardest_classes(names: Sequence[str], labels: NDArray[np.int64], judgements: Mapping[str, Judgement]) -> TablePanel:
    """The classes that the last model knows worst, beside the other models."""
    present = np.unique(labels)
    hits = {model: hits_at(np.asarray(j.predictions["images"]["rank"]), 1) for model, j in judgements.items()}
    recall = {model: np.array([100 * hit[labels == c].mean() for c in present]) for model, hit in hits.items()}
    worst = np.argsort(list(recall.values())[-1], kind="stable")[:HARDEST]
    rows: list[list[str | float | int | None]] = []
    for i in worst:
        shares = [round(float(values[i]), 1) for values in recall.values()]
        rows.append([names[present[i]], int((labels == present[i]).sum()), *shares])
    columns = ["class", "images", *(f"{model}, % right" for model in recall)]
    return TablePanel(title="Hardest classes", order=40, columns=columns, rows=rows)
