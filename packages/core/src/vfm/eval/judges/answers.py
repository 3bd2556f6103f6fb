"""What is right for each image of a set, one class or several labels, and the judgement of scores by it."""

# N images, C classes or labels

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.artifacts import ImageDataset, LabeledDataset, TaggedImages
from vfm.data import open_dataset
from vfm.data.tags import read_tags
from vfm.eval.average_precision import RankingVerdict, average_precisions
from vfm.eval.encode import Encoded, ImageEncoder, Reading, encode_dataset
from vfm.eval.judgement import Judgement
from vfm.eval.judges.zero_shot import class_verdicts, encode_labeled, group_verdicts, hardest_classes, labels_of
from vfm.eval.ranking import hits_at, label_ranks
from vfm.panels import TablePanel
from vfm.stage import Context

Answered = LabeledDataset | TaggedImages


def encode_answered(
    ctx: Context, models: Mapping[str, ImageEncoder], data: Answered, reading: Reading
) -> tuple[Encoded, Tensor]:
    """Features of a set's images, and what is right for each: its class, (N,), or which labels it has, (N, C) bool."""
    if isinstance(data, LabeledDataset):
        images = encode_labeled(ctx, models, data, reading)
        return images, torch.from_numpy(labels_of(images))
    source = open_dataset(ImageDataset.load(data.linked(data.data)))
    images = encode_dataset(ctx, source, models, reading)
    return images, torch.from_numpy(read_tags(data)[images.numbers])


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
        verdict = RankingVerdict(f"{prefix}map", scores, answers.numpy())
        columns = {"key": list(keys), "labels": _places(answers), "scores": list(scores.astype(np.float32))}
        return Judgement([verdict], {"images": columns}, details)
    ranks, labels = label_ranks(torch.from_numpy(scores), answers), answers.numpy()
    verdicts = class_verdicts(hits_at(ranks, 1), hits_at(ranks, 5), labels, scores.shape[1], prefix=prefix)
    verdicts += group_verdicts(hits_at(ranks, 1), labels, data, prefix=prefix)
    columns = {"key": keys, "label": labels, "predicted": scores.argmax(axis=1), "rank": ranks}
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
