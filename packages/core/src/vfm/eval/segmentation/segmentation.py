"""Compute the mean IoU of models and of folders of label maps, over all pixels of a dataset (`eval.segmentation`)."""

# H, W height and width of an image

from __future__ import annotations

from collections import defaultdict
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
from vfm.eval.dense.dense_panels import NUM_IMAGES, add_map_panels, class_table
from vfm.eval.dense.predictor import SemanticPredictor
from vfm.eval.dense.stages import Segmentation
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash, item_digest
from vfm.eval.encode.sliding_windows import predict_labels
from vfm.interfaces import Context, Evaluated, ModelResult, TablePanel
from vfm.statistics.mean_iou import MeanIou, PixelCounts, count_pixels
from vfm.train.parallel.sharing import leave_to_first

Predict = Callable[[int, Image.Image | None], NDArray[np.integer]]
"""A function from the number of an image and, for a model, the image itself to the class of each pixel."""


def evaluate_segmentation(config: Segmentation, ctx: Context, source: AnnotatedSource, models: Predictors) -> Evaluated:
    """Evaluate models and folders of label maps on all images of a dataset.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        source: Annotated images.
        models: Loaded models by name.

    Raises:
        UserError: If a map is missing or does not fit its image, or no pixel is labelled.
    """
    predict: dict[str, Predict] = {}
    for name, model in models.items():
        predict[name] = _by_model(config, name, model, source)
    for name, path in config.predictions.items():
        predict[name] = _by_files(path, source)
    classes = len(source.dataset.class_names)
    # Counts of each image by model, since the maps of all images would not fit in memory.
    counts: list[dict[str, PixelCounts]] = []
    numbers = []
    digests = []

    def count(number: int) -> tuple[bytes, dict[str, PixelCounts]]:
        image = source.image(number) if models else None
        truth = source.semantic(number)
        by_model = {}
        for name, predict_labels_of in predict.items():
            by_model[name] = count_pixels(truth, predict_labels_of(number, image), classes)
        return item_digest(source.keys[number], [truth.tobytes()]), by_model

    for number, (digest, counts_of_image) in each_image(source, config.reading, ctx, count, lambda _: (b"", {})):
        numbers.append(number)
        digests.append(digest)
        counts.append(counts_of_image)
    leave_to_first()
    details = {"stride": config.stride, "scales": config.scales, "flip": config.flip, "num_images": len(numbers)}
    keys = source.keys_of(numbers)
    scored = {}
    results = {}
    for name in predict:
        scored[name] = MeanIou.of([counts_of_image[name] for counts_of_image in counts])
        check_labelled(config.data, scored[name])
        scores = scored[name].scores(num_resamples=config.num_resamples)
        results[name] = ModelResult(scores, {"images": pixel_table(keys, scored[name])}, details)
    ctx.panel(iou_panel(source.dataset.class_names, scored))
    if source.dataset.has_images and config.has_something_to_evaluate:
        _add_worst(ctx, source, numbers, next(iter(scored.values())), predict)
    return Evaluated(data_hash(source.dataset, digests), results)


def check_labelled(data: str, counts: MeanIou) -> None:
    """Check that a dataset has labelled pixels, since scores are undefined without them.

    Args:
        data: Name of the dataset, for the message.
        counts: Pixel counts of its images, from any model.

    Raises:
        UserError: If no pixel is labelled.
    """
    if not counts.true.any():
        raise UserError(f"{data}: expected labelled pixels, got none")


def pixel_table(keys: Sequence[str], counts: MeanIou) -> dict[str, Any]:
    """Build the table of pixel counts by image and class, from which the score and its resamples can be computed."""
    return {
        "key": list(keys),
        "right": counts.right.tolist(),
        "predicted": counts.predicted.tolist(),
        "true": counts.true.tolist(),
    }


def iou_panel(class_names: Sequence[str], scored: Mapping[str, MeanIou]) -> TablePanel:
    """Build the table of the IoU of each class, sorted by the first model, worst first."""
    columns = {name: 100 * mean_iou.by_class() for name, mean_iou in scored.items()}
    note = "Intersection over union in percent, the worst classes first; classes in no image are left out."
    return class_table(class_names, columns, title="Classes by IoU", note=note)


def worst_images(counts: MeanIou) -> list[int]:
    """Select the images with the lowest share of right pixels, worst first."""
    shares = counts.right.sum(axis=1) / np.maximum(1, counts.true.sum(axis=1))
    worst: list[int] = np.argsort(shares, kind="stable")[:NUM_IMAGES].tolist()
    return worst


def _by_model(config: Segmentation, name: str, model: SemanticPredictor, source: AnnotatedSource) -> Predict:
    def predict(number: int, image: Image.Image | None) -> NDArray[np.integer]:
        assert image is not None

        def finite_logits(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            scores = model.crop_logits(crops)
            check_finite(scores, name, [source.keys[number]] * len(crops))
            return scores

        return predict_labels(
            image,
            finite_logits,
            model.image_size,
            stride=config.stride,
            scales=config.scales,
            flip=config.flip,
            batch_size=config.micro_batch_size,
        )

    return predict


def _by_files(folder: str, source: AnnotatedSource) -> Predict:
    def predict(number: int, image: Image.Image | None) -> NDArray[np.integer]:
        path = f"{folder.rstrip('/')}/{source.keys[number]}.png"
        try:
            labels = read_map(path)
        except BadSample as problem:
            raise UserError(f"{path}: expected a label map of one channel ({problem.reason})") from None
        check_size(path, labels, source.sizes[number])
        num_classes = len(source.dataset.class_names)
        if labels.max() >= num_classes:
            raise UserError(f"{path}: expected labels below {num_classes}, got {labels.max()}")
        return labels

    return predict


def _add_worst(
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    counts: MeanIou,
    predict: Mapping[str, Predict],
) -> None:
    """Draw the worst images. Their maps are computed again, since the maps of all images do not fit in memory."""
    shown = []
    truth = []
    maps = defaultdict(list)
    for row in worst_images(counts):
        number = numbers[row]
        image = source.image(number)
        shown.append(number)
        truth.append(source.semantic(number))
        for name, predict_labels_of in predict.items():
            maps[name].append(predict_labels_of(number, image))
    add_map_panels(ctx, source, shown, truth, maps)
