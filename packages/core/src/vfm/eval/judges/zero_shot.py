"""Zero-shot classification: the images of a labelled set through all models once, then each model's own classifier."""

# C classes, T templates, N images, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vfm.artifacts import LabeledDataset
from vfm.data import BadSample, Sample, open_dataset
from vfm.eval.compare import Verdict
from vfm.eval.encode import Encoded, ImageEncoder, Reading, TextImageEncoder, encode_dataset
from vfm.eval.fingerprint import data_hash
from vfm.eval.judgement import Judgement
from vfm.eval.ranking import hits_at
from vfm.eval.zero_shot import ensemble_templates, fill_templates, predicted_classes, true_class_ranks
from vfm.panels import TablePanel
from vfm.stage import Context

HARDEST = 12  # classes shown


def judge_zero_shot(
    ctx: Context,
    models: Mapping[str, TextImageEncoder],
    data: LabeledDataset,
    *,
    templates: Sequence[str] | None = None,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> tuple[str, dict[str, Judgement]]:
    """Judge models by class names written with `templates`, or the data set's own.

    Returns:
        The hash of the data and a judgement for each model.
    """
    names, templates = data.class_names, templates or data.templates
    images = encode_labeled(ctx, models, data, reading)
    labels = labels_of(images)
    judgements = {}
    for name, model in models.items():
        prompts = model.encode_texts(fill_templates(names, templates), reading.batch_size)
        classifier = ensemble_templates(prompts.view(len(names), len(templates), -1))
        ranks = true_class_ranks(images.features[name], classifier, torch.from_numpy(labels))
        predicted = predicted_classes(images.features[name], classifier)
        columns = {"key": images.keys, "label": labels, "predicted": predicted, "rank": ranks}
        verdicts = class_verdicts(hits_at(ranks, 1), hits_at(ranks, 5), labels, len(names))
        verdicts += group_verdicts(hits_at(ranks, 1), labels, data)
        judgements[name] = Judgement(verdicts, {"images": columns}, {"templates": list(templates)})
    ctx.panel(hardest_classes(names, labels, judgements))
    return data_hash(data, images.digests), judgements


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
    top1: NDArray[np.bool_], labels: NDArray[np.int64], data: LabeledDataset, *, prefix: str = ""
) -> list[Verdict]:
    """Top-1 of the images of each group of classes (the tail, say); all classes may be answered."""
    groups = [(group, np.isin(labels, members)) for group, members in data.class_groups.items()]
    return [
        Verdict(f"{prefix}acc1/{group}", top1[those], chance=1 / len(data.class_names))
        for group, those in groups
        if those.any()
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
