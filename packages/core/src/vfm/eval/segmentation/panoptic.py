"""Work of `eval.panoptic`: panoptic quality of models and of COCO's panoptic files."""

# H, W height and width of a picture

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.base import UserError
from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.coco import stream
from vfm.data.annotated.panoptic import map_folder, read_segment_ids
from vfm.data.annotated.records import BadAnnotation
from vfm.eval.dense.annotated_images import check_size, each_image
from vfm.eval.dense.dense_models import Predictors
from vfm.eval.dense.dense_panels import NUM_PICTURES, add_map_panels
from vfm.eval.dense.predictor import PanopticPredictor
from vfm.eval.dense.stages import Panoptic
from vfm.eval.detection.detection import truth_hash
from vfm.interfaces import Context, Evaluated, ModelResult, TablePanel
from vfm.statistics.panoptic_quality import PanopticQuality, SegmentCounts, Segments, count_segments
from vfm.storage.store_files import naming
from vfm.train.parallel.sharing import leave_to_first

CLASSES_SHOWN = 60
Predict = Callable[[int, Image.Image | None], Segments]


def evaluate_panoptic(config: Panoptic, ctx: Context, source: AnnotatedSource, models: Predictors) -> Evaluated:
    """Evaluate models and panoptic files on all images of a dataset.

    Raises:
        UserError: a file does not fit the dataset.
    """
    predict: dict[str, Predict] = {name: _by_model(model) for name, model in models.items()}
    predict |= {name: _by_file(path, source) for name, path in config.predictions.items()}
    classes, with_pictures = len(source.dataset.class_names), bool(models)
    counts: dict[str, list[SegmentCounts]] = {name: [] for name in predict}
    numbers = []

    def count(number: int) -> dict[str, SegmentCounts]:
        picture, truth = source.image(number) if with_pictures else None, true_segments(source, number)
        return {name: count_segments(truth, segments(number, picture), classes) for name, segments in predict.items()}

    for number, found in each_image(source, config.reading, ctx, count, lambda _: {}):
        numbers.append(number)
        for name, one in found.items():
            counts[name].append(one)
    leave_to_first()
    scored = {name: PanopticQuality.of(one) for name, one in counts.items()}
    things = np.array(source.dataset.things, dtype=bool)
    details = {"num_images": len(numbers)}
    keys = [source.keys[number] for number in numbers]
    if not any((one.true + one.missed).any() for one in scored.values()):
        raise UserError(f"{config.data}: expected segments, got none that counts")
    results = {
        name: ModelResult(one.scores(things, config.num_resamples), {"images": _table(keys, one)}, details)
        for name, one in scored.items()
    }
    ctx.panel(_class_panel(source, scored))
    if source.dataset.has_images and config.has_something_to_evaluate:
        _add_worst(ctx, source, numbers, next(iter(scored.values())), predict)
    return Evaluated(truth_hash(source), results)


def true_segments(source: AnnotatedSource, number: int) -> Segments:
    """Return the true segments of an image; the ground of a dataset that has one is a segment of its own."""
    numbers, objects = source.panoptic(number)
    labels, crowd = objects.labels, objects.crowd
    if source.dataset.background is not None and (numbers < 0).any():
        numbers = np.where(numbers < 0, len(labels), numbers)
        labels, crowd = np.append(labels, source.dataset.background), np.append(crowd, False)
    return Segments(numbers, labels, crowd)


def _by_model(model: PanopticPredictor) -> Predict:
    def predict(number: int, picture: Image.Image | None) -> Segments:
        assert picture is not None
        (found,) = model.segment_all([picture])
        return Segments(found.segments, found.labels)

    return predict


def _by_file(path: str, source: AnnotatedSource) -> Predict:
    """Return the segments of a COCO panoptic file, by the image's id."""
    with naming(path, "COCO's panoptic json"):
        folder = map_folder(path)
        listed = {one["image_id"]: one for one in stream(path, "annotations")}
    labels = {number: label for label, number in enumerate(source.dataset.class_ids)}

    def predict(number: int, picture: Image.Image | None) -> Segments:
        one = listed.get(source.image_ids[number])
        if one is None:
            raise UserError(f"{path}: no annotation of image {source.image_ids[number]}")
        with naming(path, "COCO's panoptic json"):
            file = f"{folder}/{one['file_name']}"
            ids = [int(segment["id"]) for segment in one["segments_info"]]
            classes = [int(segment["category_id"]) for segment in one["segments_info"]]
        if len(set(ids)) < len(ids):
            raise UserError(f"{path}: two segments of image {source.image_ids[number]} have one id")
        if unknown := set(classes) - set(labels):
            raise UserError(f"{path}: the dataset has no class {min(unknown)}")
        try:
            pixels = read_segment_ids(file)
        except BadAnnotation as bad:
            raise UserError(f"{bad.where}: expected a PNG file of segment ids") from None
        check_size(file, pixels, source.sizes[number])
        return Segments(_numbered(pixels, ids), np.array([labels[one] for one in classes], dtype=np.int64))

    return predict


def _numbered(ids: NDArray[np.int32], listed: Sequence[int]) -> NDArray[np.int64]:
    """Return the place of each pixel's id in a list, -1 for an id that is not in it, (H, W)."""
    found, inverse = np.unique(ids, return_inverse=True)
    place = {number: n for n, number in enumerate(listed)}
    places = np.array([place.get(int(number), -1) for number in found], dtype=np.int64)
    return np.asarray(places[inverse].reshape(ids.shape), dtype=np.int64)


def _table(keys: Sequence[str], counts: PanopticQuality) -> dict[str, Any]:
    parts = {name: getattr(counts, name).tolist() for name in ("iou", "true", "wrong", "missed")}
    return {"key": list(keys), **parts}


def _class_panel(source: AnnotatedSource, scored: Mapping[str, PanopticQuality]) -> TablePanel:
    once = np.ones((1, len(next(iter(scored.values())).true)), dtype=np.int64)
    tables = {name: 100 * one.by_class(once)["pq"][0] for name, one in scored.items()}
    first = next(iter(tables.values()))
    known = np.flatnonzero(np.isfinite(first))
    rows: list[list[str | float | int | None]] = [
        [source.dataset.class_names[label], *(round(float(table[label]), 1) for table in tables.values())]
        for label in known[np.argsort(first[known], kind="stable")][:CLASSES_SHOWN].tolist()
    ]
    note = "Panoptic quality in percent, the worst classes first."
    return TablePanel(title="Classes by panoptic quality", note=note, order=30, columns=["class", *tables], rows=rows)


def _add_worst(
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    counts: PanopticQuality,
    predict: Mapping[str, Predict],
) -> None:
    size = np.maximum(1, (counts.true + counts.wrong + counts.missed).sum(axis=1))
    worst = [numbers[n] for n in np.argsort(counts.iou.sum(axis=1) / size, kind="stable")[:NUM_PICTURES].tolist()]
    truth = [class_map(true_segments(source, number)) for number in worst]
    maps = {name: [class_map(call(number, source.image(number))) for number in worst] for name, call in predict.items()}
    add_map_panels(ctx, source, worst, truth, maps)


def class_map(segments: Segments) -> NDArray[np.int64]:
    """Return the class of each pixel, -1 where there is no segment, (H, W)."""
    return np.asarray(np.append(segments.labels, -1)[segments.numbers], dtype=np.int64)
