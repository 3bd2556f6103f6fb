"""Work of `eval.segmentation`: mean IoU of models and of folders of label maps, over all pixels of a dataset."""

# H, W height and width of a picture

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.base import UserError
from vfm.data import BadSample
from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.label_files import read_map
from vfm.eval.dense.annotated_images import check_size, each_image
from vfm.eval.dense.dense_models import Predictors
from vfm.eval.dense.dense_panels import NUM_PICTURES, add_map_panels
from vfm.eval.dense.predictor import SemanticPredictor
from vfm.eval.dense.stages import Segmentation
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash, item_digest
from vfm.eval.encode.sliding_windows import predict_labels
from vfm.interfaces import Context, Evaluated, ModelResult, TablePanel
from vfm.statistics.mean_iou import MeanIou, PixelCounts, count_pixels
from vfm.train.parallel.sharing import leave_to_first

CLASSES_SHOWN = 60
Predict = Callable[[int, Image.Image | None], NDArray[np.integer]]
"""The class of each pixel of an image, given its number and, for a model, its picture."""


def evaluate_segmentation(config: Segmentation, ctx: Context, source: AnnotatedSource, models: Predictors) -> Evaluated:
    """Evaluate models and folders of label maps on all images of a dataset.

    Raises:
        UserError: a map is missing, or does not fit its image; or no pixel is labelled.
    """
    predict = {name: _by_model(config, name, model, source) for name, model in models.items()}
    predict |= {name: _by_files(path, source) for name, path in config.predictions.items()}
    classes, with_pictures = len(source.dataset.class_names), bool(models)
    counts: dict[str, list[PixelCounts]] = {name: [] for name in predict}
    numbers, digests = [], []

    def count(number: int) -> tuple[bytes, dict[str, PixelCounts]]:
        picture, truth = source.image(number) if with_pictures else None, source.semantic(number)
        found = {name: count_pixels(truth, labels(number, picture), classes) for name, labels in predict.items()}
        return item_digest(source.keys[number], [truth.tobytes()]), found

    for number, (digest, found) in each_image(source, config.reading, ctx, count, lambda _: (b"", {})):
        numbers.append(number)
        digests.append(digest)
        for name, one in found.items():
            counts[name].append(one)
    leave_to_first()
    scored = {name: MeanIou.of(one) for name, one in counts.items()}
    check_labelled(config.data, next(iter(scored.values())))
    details = {"stride": config.stride, "scales": config.scales, "flip": config.flip, "num_images": len(numbers)}
    keys = [source.keys[number] for number in numbers]
    results = {
        name: ModelResult(one.scores(num_resamples=config.num_resamples), {"images": pixel_table(keys, one)}, details)
        for name, one in scored.items()
    }
    ctx.panel(iou_panel(source.dataset.class_names, scored))
    if source.dataset.has_images and config.has_something_to_evaluate:
        _add_worst(ctx, source, numbers, next(iter(counts.values())), predict)
    return Evaluated(data_hash(source.dataset, digests), results)


def check_labelled(data: str, counts: MeanIou) -> None:
    """Check that a dataset has labelled pixels, without which nothing has a score.

    Args:
        data: its name, for the message.
        counts: of its images, by any model.

    Raises:
        UserError: it has none.
    """
    if not counts.true.any():
        raise UserError(f"{data}: expected labelled pixels, got none")


def pixel_table(keys: Sequence[str], counts: MeanIou) -> dict[str, Any]:
    """Return the pixels of each image by class, from which the score and its resamples follow."""
    parts = {name: getattr(counts, name).tolist() for name in ("right", "predicted", "true")}
    return {"key": list(keys), **parts}


def iou_panel(class_names: Sequence[str], scored: Mapping[str, MeanIou]) -> TablePanel:
    """Return the table of the IoU of each class, the worst of the first model first."""
    tables = {name: 100 * one.by_class() for name, one in scored.items()}
    first = next(iter(tables.values()))
    known = np.flatnonzero(np.isfinite(first))
    rows: list[list[str | float | int | None]] = [
        [class_names[label], *(round(float(table[label]), 1) for table in tables.values())]
        for label in known[np.argsort(first[known], kind="stable")][:CLASSES_SHOWN].tolist()
    ]
    note = "Intersection over union in percent, the worst classes first; classes in no image are left out."
    return TablePanel(title="Classes by IoU", note=note, order=30, columns=["class", *tables], rows=rows)


def _by_model(config: Segmentation, name: str, model: SemanticPredictor, source: AnnotatedSource) -> Predict:
    def predict(number: int, picture: Image.Image | None) -> NDArray[np.integer]:
        assert picture is not None

        def finite_logits(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            scores = model.crop_logits(crops)
            check_finite(scores, name, [source.keys[number]] * len(crops))
            return scores

        return predict_labels(
            picture,
            finite_logits,
            model.image_size,
            stride=config.stride,
            scales=config.scales,
            flip=config.flip,
            batch_size=config.micro_batch_size,
        )

    return predict


def _by_files(folder: str, source: AnnotatedSource) -> Predict:
    def predict(number: int, picture: Image.Image | None) -> NDArray[np.integer]:
        path = f"{folder.rstrip('/')}/{source.keys[number]}.png"
        try:
            found = read_map(path)
        except BadSample as problem:
            raise UserError(f"{path}: expected a label map of one channel ({problem.reason})") from None
        check_size(path, found, source.sizes[number])
        if found.max() >= len(source.dataset.class_names):
            raise UserError(f"{path}: expected labels below {len(source.dataset.class_names)}, got {found.max()}")
        return found

    return predict


def _add_worst(
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    counts: Sequence[PixelCounts],
    predict: Mapping[str, Predict],
) -> None:
    """Draw the worst pictures; their maps are computed again, since all maps do not fit in memory."""
    shares = [one.right.sum() / max(1, one.true.sum()) for one in counts]
    worst = [numbers[place] for place in np.argsort(shares, kind="stable")[:NUM_PICTURES].tolist()]
    maps = {name: [function(number, source.image(number)) for number in worst] for name, function in predict.items()}
    add_map_panels(ctx, source, worst, [source.semantic(number) for number in worst], maps)
