"""Compute the panoptic quality of models and of COCO panoptic files (`eval.panoptic`)."""

# H, W height and width of an image

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.base import UserError, positions
from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.coco import stream
from vfm.data.annotated.panoptic import map_folder, read_segment_ids
from vfm.data.annotated.records import BadAnnotation
from vfm.eval.dense.annotated_images import check_size, each_image
from vfm.eval.dense.dense_models import Predictors
from vfm.eval.dense.dense_panels import NUM_IMAGES, add_map_panels, class_table
from vfm.eval.dense.predictor import PanopticPredictor
from vfm.eval.dense.stages import Panoptic
from vfm.eval.detection.detection import truth_hash
from vfm.interfaces import Context, Evaluated, ModelResult, TablePanel
from vfm.statistics.panoptic_quality import PanopticQuality, SegmentCounts, Segments, count_segments
from vfm.storage.store_files import naming
from vfm.train.parallel.sharing import leave_to_first

Predict = Callable[[int, Image.Image | None], Segments]


def evaluate_panoptic(config: Panoptic, ctx: Context, source: AnnotatedSource, models: Predictors) -> Evaluated:
    """Evaluate models and panoptic files on all images of a dataset.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        source: Annotated images.
        models: Loaded models by name.

    Raises:
        UserError: If a file does not fit the dataset.
    """
    predict: dict[str, Predict] = {}
    for name, model in models.items():
        predict[name] = _by_model(model)
    for name, path in config.predictions.items():
        predict[name] = _by_file(path, source)
    classes = len(source.dataset.class_names)
    counts: list[dict[str, SegmentCounts]] = []  # of each image, by model
    numbers = []

    def count(number: int) -> dict[str, SegmentCounts]:
        image = source.image(number) if models else None
        truth = true_segments(source, number)
        by_model = {}
        for name, predict_segments in predict.items():
            by_model[name] = count_segments(truth, predict_segments(number, image), classes)
        return by_model

    for number, counts_of_image in each_image(source, config.reading, ctx, count, lambda _: {}):
        numbers.append(number)
        counts.append(counts_of_image)
    leave_to_first()
    scored = {}
    num_segments = 0
    for name in predict:
        scored[name] = PanopticQuality.of([counts_of_image[name] for counts_of_image in counts])
        num_segments += int((scored[name].true + scored[name].missed).sum())
    if not num_segments:
        raise UserError(f"{config.data}: expected segments, got none that counts")
    things = np.array(source.dataset.things, dtype=bool)
    details = {"num_images": len(numbers)}
    keys = source.keys_of(numbers)
    results = {}
    for name, quality in scored.items():
        scores = quality.scores(things, config.num_resamples)
        results[name] = ModelResult(scores, {"images": _table(keys, quality)}, details)
    ctx.panel(_class_panel(source, scored))
    if source.dataset.has_images and config.has_something_to_evaluate:
        _add_worst(ctx, source, numbers, next(iter(scored.values())), predict)
    return Evaluated(truth_hash(source), results)


def true_segments(source: AnnotatedSource, number: int) -> Segments:
    """Read the true segments of an image. If the dataset has a background class, unlabelled pixels are its segment."""
    numbers, objects = source.panoptic(number)
    labels = objects.labels
    crowd = objects.crowd
    if source.dataset.background is not None and (numbers < 0).any():
        numbers = np.where(numbers < 0, len(labels), numbers)
        labels = np.append(labels, source.dataset.background)
        crowd = np.append(crowd, False)
    return Segments(numbers, labels, crowd)


def _by_model(model: PanopticPredictor) -> Predict:
    def predict(number: int, image: Image.Image | None) -> Segments:
        assert image is not None
        (panoptic_map,) = model.segment_all([image])
        return Segments(panoptic_map.segments, panoptic_map.labels)

    return predict


def _by_file(path: str, source: AnnotatedSource) -> Predict:
    """Read predictions from a COCO panoptic file, by the image's id."""
    with naming(path, "COCO's panoptic json"):
        folder = map_folder(path)
        annotations = {annotation["image_id"]: annotation for annotation in stream(path, "annotations")}
    class_ids = source.dataset.class_ids

    def predict(number: int, image: Image.Image | None) -> Segments:
        # The file may have more images than the dataset, but not fewer.
        annotation = annotations.get(source.image_ids[number])
        if annotation is None:
            raise UserError(f"{path}: no annotation of image {source.image_ids[number]}")
        ids = []
        classes = []
        with naming(path, "COCO's panoptic json"):
            file = f"{folder}/{annotation['file_name']}"
            for segment in annotation["segments_info"]:
                ids.append(int(segment["id"]))
                classes.append(int(segment["category_id"]))
        if len(set(ids)) < len(ids):
            raise UserError(f"{path}: two segments of image {source.image_ids[number]} have one id")
        unknown = set(classes) - set(class_ids)
        if unknown:
            raise UserError(f"{path}: the dataset has no class {min(unknown)}")
        try:
            pixels = read_segment_ids(file)
        except BadAnnotation as bad:
            raise UserError(f"{bad.where}: expected a PNG file of segment ids") from None
        check_size(file, pixels, source.sizes[number])
        return Segments(_numbered(pixels, ids), np.array(list(map(class_ids.index, classes)), dtype=np.int64))

    return predict


def _numbered(ids: NDArray[np.int32], listed: Sequence[int]) -> NDArray[np.int64]:
    """Look up the index of each pixel's id in a list, -1 for ids that are not in it, (H, W)."""
    unique_ids, inverse = np.unique(ids, return_inverse=True)
    index_of = positions(listed)
    indices = np.array([index_of.get(int(number), -1) for number in unique_ids], dtype=np.int64)
    return np.asarray(indices[inverse].reshape(ids.shape), dtype=np.int64)


def _table(keys: Sequence[str], counts: PanopticQuality) -> dict[str, Any]:
    return {
        "key": list(keys),
        "iou": counts.iou.tolist(),
        "true": counts.true.tolist(),
        "wrong": counts.wrong.tolist(),
        "missed": counts.missed.tolist(),
    }


def _class_panel(source: AnnotatedSource, scored: Mapping[str, PanopticQuality]) -> TablePanel:
    once = np.ones((1, len(next(iter(scored.values())).true)), dtype=np.int64)
    columns = {name: 100 * quality.by_class(once)["pq"][0] for name, quality in scored.items()}
    note = "Panoptic quality in percent, the worst classes first."
    return class_table(source.dataset.class_names, columns, title="Classes by panoptic quality", note=note)


def _add_worst(
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    counts: PanopticQuality,
    predict: Mapping[str, Predict],
) -> None:
    size = np.maximum(1, (counts.true + counts.wrong + counts.missed).sum(axis=1))
    order = np.argsort(counts.iou.sum(axis=1) / size, kind="stable")[:NUM_IMAGES].tolist()
    shown = []
    truth = []
    maps = defaultdict(list)
    for row in order:
        number = numbers[row]
        image = source.image(number)
        shown.append(number)
        truth.append(class_map(true_segments(source, number)))
        for name, predict_segments in predict.items():
            maps[name].append(class_map(predict_segments(number, image)))
    add_map_panels(ctx, source, shown, truth, maps)


def class_map(segments: Segments) -> NDArray[np.int64]:
    """Look up the class of each pixel, -1 where there is no segment, (H, W)."""
    # The number -1, for no segment, selects the appended last label.
    return np.asarray(np.append(segments.labels, -1)[segments.numbers], dtype=np.int64)
