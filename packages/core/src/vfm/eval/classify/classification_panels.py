"""Draw the hardest classes or labels, and images with right and wrong answers."""

# N images, C labels

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import decode_image, open_dataset
from vfm.eval.classify.classification import ClassDataset
from vfm.eval.encode.confusions import confusion_panel
from vfm.eval.encode.features import Encoded
from vfm.eval.encode.image_panels import CaptionedImage, changed_panel, first_of_each, images_panel, won_and_lost
from vfm.eval.encode.ranking import hits_at
from vfm.interfaces import Context, LabeledDataset, ModelResult, TablePanel
from vfm.statistics import average_precisions

HARDEST = 12  # classes shown
SHOWN = 8  # images of each outcome


def add_class_panels(
    ctx: Context, data: ClassDataset, images: Encoded, targets: Tensor, results: Mapping[str, ModelResult]
) -> None:
    """Add a table of the hardest classes or labels and, if each image has one class, a sheet of answers.

    Args:
        ctx: Receives the panels.
        data: The dataset.
        images: The N encoded images.
        targets: Classes, (N,), or labels, (N, C) bool.
        results: Results by model, from `result_from_scores` or `result_from_ranks`. The sheet shows the last model.
    """
    ctx.panel(hardest_panel(data, targets, results))
    if isinstance(data, LabeledDataset):
        model, result = list(results.items())[-1]
        title = f"Images that {model} classifies right and wrong"
        note = "One image of a class; wrong ones by the rank of their own class, the last first."
        answers = _answers(data, images.numbers, result)
        ctx.panel(images_panel(ctx.directory, "answers", title, answers, note=note, order=50))
        ctx.panel(confusion_panel(data.class_names, targets.numpy(), result.predictions["images"]["predicted"], model))
        if len(results) > 1:
            _add_changed_panel(ctx, data, images.numbers, results)


def _answers(data: LabeledDataset, numbers: Sequence[int], result: ModelResult) -> Iterator[CaptionedImage]:
    """Yield images that a model classifies right, then the ones with the worst ranks."""
    table = result.predictions["images"]
    source = open_dataset(data)
    labels = np.asarray(table["label"])
    predicted = np.asarray(table["predicted"])
    ranks = np.asarray(table["rank"])
    worst_first = np.argsort(-ranks, kind="stable")
    right = np.flatnonzero(ranks == 0)
    wrong = worst_first[ranks[worst_first] > 0]
    for row in [*first_of_each(right, labels, SHOWN), *first_of_each(wrong, labels, SHOWN)]:
        label = data.class_names[labels[row]]
        guess = data.class_names[predicted[row]]
        rank = int(ranks[row])
        taken = "" if guess == label else f", taken for {guess}"
        sample = source[numbers[row]]
        yield CaptionedImage(decode_image(sample.image, sample.key), f"{label}{taken} · rank {rank + 1}", rank == 0)


def _add_changed_panel(
    ctx: Context, data: LabeledDataset, numbers: Sequence[int], results: Mapping[str, ModelResult]
) -> None:
    """Add the sheet of images that only the last model, or only the first one, classifies right."""
    (baseline, first), *_, (model, last) = results.items()
    before = np.asarray(first.predictions["images"]["rank"]) == 0
    after = np.asarray(last.predictions["images"]["rank"]) == 0
    labels = np.asarray(last.predictions["images"]["label"])
    won, lost = won_and_lost(before, after)
    source = open_dataset(data)
    shown: list[CaptionedImage] = []
    for items, name, mistaken in ((won, baseline, first), (lost, model, last)):
        guesses = mistaken.predictions["images"]["predicted"]
        for item in first_of_each(items, labels, SHOWN // 2):
            sample = source[numbers[item]]
            label = data.class_names[labels[item]]
            guess = data.class_names[guesses[item]]
            image = decode_image(sample.image, sample.key)
            shown.append(CaptionedImage(image, f"{label}, {guess} for {name}", right=mistaken is first))
    note = "Under each image are its class and the answer of the model that is wrong."
    ctx.panel(changed_panel(ctx.directory, (baseline, model), shown, len(won), len(lost), note=note))


def hardest_panel(data: ClassDataset, targets: Tensor, results: Mapping[str, ModelResult]) -> TablePanel:
    """Build a table of the classes with the lowest recall by the last model.

    For several labels per image, it has the precision of every label.

    Args:
        data: The dataset.
        targets: Classes, (N,), or labels, (N, C) bool.
        results: Results by model.
    """
    if isinstance(data, LabeledDataset):
        return _hardest_classes(data.class_names, targets.numpy(), results)
    positives = targets.numpy()
    by_column = {}
    for model, result in results.items():
        precisions = average_precisions(np.stack(result.predictions["images"]["scores"]), positives)
        by_column[f"{model}, average precision, %"] = precisions
    rows: list[list[str | float | int | None]] = []
    for c, name in enumerate(data.class_names):
        if positives[:, c].any():
            shares = [round(100 * float(precisions[c]), 1) for precisions in by_column.values()]
            rows.append([name, int(positives[:, c].sum()), *shares])
    columns = ["label", "images", *by_column]
    return TablePanel(title="Average precision by label", order=40, columns=columns, rows=rows)


def _hardest_classes(names: Sequence[str], labels: NDArray[np.int64], results: Mapping[str, ModelResult]) -> TablePanel:
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    recall = {}
    for model, result in results.items():
        hits = hits_at(np.asarray(result.predictions["images"]["rank"]), 1)
        recall[f"{model}, % right"] = 100 * (np.bincount(labels, hits) / np.maximum(1, counts))  # (C,)
    by_last_model = list(recall.values())[-1][present]
    rows: list[list[str | float | int | None]] = []
    for label in present[np.argsort(by_last_model, kind="stable")][:HARDEST]:
        shares = [round(float(values[label]), 1) for values in recall.values()]
        rows.append([names[label], int(counts[label]), *shares])
    columns = ["class", "images", *recall]
    return TablePanel(title="Hardest classes", order=40, columns=columns, rows=rows)
