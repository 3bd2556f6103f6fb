"""Predict or read detections for `eval.detection`, score them by COCO's or LVIS' rule, and compare models."""

# K classes

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.base import UserError
from vfm.data.annotated import AnnotatedSource, encode_mask
from vfm.eval.dense.annotated_images import each_result
from vfm.eval.dense.dense_models import Predictors
from vfm.eval.dense.predictor import Instances
from vfm.eval.dense.stages import Detection
from vfm.eval.detection.detection_panels import add_panels
from vfm.eval.detection.detection_rules import MAX_DETS, GroundTruth, Rule, Shape, match_all
from vfm.eval.detection.detection_scores import DetectionScores
from vfm.eval.detection.detections import Detections, Row, read_results, write_results_file
from vfm.eval.detection.soft_nms import soften
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash
from vfm.interfaces import AnnotatedImages, Context, Evaluated, ModelResult
from vfm.train.parallel.sharing import leave_to_first

SHAPES: tuple[Shape, ...] = ("boxes", "masks")


def evaluate_detection(config: Detection, ctx: Context, source: AnnotatedSource, models: Predictors) -> Evaluated:
    """Evaluate models and results files on all images of a dataset.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        source: Annotated images.
        models: Loaded models by name.

    Raises:
        UserError: If a file does not fit the dataset, or masks or objects to compare are missing.
    """
    predicted = predict(config, ctx, source, models)
    # From here on only the first process continues, with the detections of all processes.
    leave_to_first()
    for name, path in config.predictions.items():
        predicted[name] = read_results(path, source)
    if config.soft_nms:
        for name, detections in predicted.items():
            predicted[name] = soften(detections)
    rule = choose_rule(config, source.dataset)
    shapes = choose_shapes(config, source.dataset, predicted, models)
    max_dets = config.max_dets or MAX_DETS[rule]
    truth = GroundTruth.of(source, rule, agnostic=config.class_agnostic)
    if (truth.objects.crowd | truth.objects.ignored).all():
        raise UserError(f"{config.data}: expected annotated objects, got none that counts")
    frequency = _frequency(config, ctx, source.dataset, rule)
    scored: dict[str, list[DetectionScores]] = {}
    for name, detections in predicted.items():
        scored[name] = []
        # Boxes and masks are matched separately: a box can match where its mask does not.
        for shape in shapes:
            classes = list(match_all(_scored(config, detections, shape), truth, shape, max_dets))
            scored[name].append(DetectionScores(shape, classes, len(source), frequency, config.num_resamples))
    details = {
        "rule": rule,
        "max_dets": max_dets,
        "soft_nms": config.soft_nms,
        "maskness": config.maskness,
        "class_agnostic": config.class_agnostic,
        "num_images": len(source),
    }
    results = {}
    for name, by_shape in scored.items():
        scores = []
        for scores_of_shape in by_shape:
            scores += scores_of_shape.scores()
        results[name] = ModelResult(scores, {}, details)
    if config.has_something_to_evaluate:
        for name in models:
            (ctx.directory / "predictions").mkdir(exist_ok=True)
            write_results_file(ctx.directory / "predictions" / f"{name}.json", predicted[name], source)
        for name, result in results.items():
            first = result.scores[0]
            ctx.log(f"{name}: {first.metric} {100 * first.value:.1f} by {rule}'s rule, max_dets {max_dets}")
        add_panels(config, ctx, source, predicted, scored, rule, max_dets)
    return Evaluated(truth_hash(source), results)


def predict(config: Detection, ctx: Context, source: AnnotatedSource, models: Predictors) -> dict[str, Detections]:
    """Detect objects in all images with each model, decoding each image once.

    If several processes share the evaluation, only the first one gets the detections.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        source: Annotated images.
        models: Loaded models by name.
    """

    def detect(batch: list[tuple[int, Image.Image]]) -> list[dict[str, list[Row]]]:
        rows_of_batch: list[dict[str, list[Row]]] = [{} for _ in batch]
        for name, model in models.items():
            instances_of_batch = model.detect([image for _, image in batch])
            for (number, _), rows, instances in zip(batch, rows_of_batch, instances_of_batch, strict=True):
                # NaN would sort anywhere among the scores.
                check_finite(_numbers(instances)[None], name, [source.keys[number]])
                rows[name] = _rows(number, instances)
        return rows_of_batch

    def without_rows(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
        return {name: [] for name in rows}

    if not models:
        return {}
    of_images = each_result(
        source, config.reading, ctx, source.image, detect, batch_size=config.micro_batch_size,
        for_others=without_rows,
    )  # fmt: skip
    rows_by_model: defaultdict[str, list[Row]] = defaultdict(list)
    for _, rows_of_image in of_images:
        for name, rows in rows_of_image.items():
            rows_by_model[name] += rows
    return {name: Detections.of(rows_by_model[name]) for name in models}


def choose_rule(config: Detection, data: AnnotatedImages) -> Rule:
    """Choose the rule of matching, by default LVIS' for federated labels and COCO's for others.

    Raises:
        UserError: If LVIS' rule is set for images without lists of absent classes. It would drop every detection of a
            class that an image lacks. This raised AP from 47.5 to 67.5 % on synthetic scenes of 120 classes.
    """
    if config.rule == "auto":
        return "lvis" if data.federated else "coco"
    if config.rule != "coco" and not data.federated:
        raise UserError(
            f"rule {config.rule}: expected federated labels, which name the absent classes of each image; got images of"
            f" {config.data} that are labelled for all classes: take coco, by which frequency_of also groups them"
        )
    return config.rule


def choose_shapes(
    config: Detection, data: AnnotatedImages, predicted: Mapping[str, Detections], models: Predictors
) -> list[Shape]:
    """Choose the shapes to compare.

    Boxes are compared, and also masks if the dataset and every model and file have them.

    Args:
        config: Settings of the evaluation.
        data: The dataset.
        predicted: Detections by model or file.
        models: Loaded models by name.

    Raises:
        UserError: If masks are requested, but a model has none.
    """
    lacking = []
    for name, model in models.items():
        if "masks" not in model.tasks:
            lacking.append(name)
    for name in config.predictions:
        if None in predicted[name].counts or not len(predicted[name]):
            lacking.append(name)
    chosen = set(config.shapes or data.labels)
    if lacking:
        # Only a shape that the user has named is an error; by default, what all models have is compared.
        if config.shapes and "masks" in chosen:
            raise UserError(f"{lacking[0]}: shapes has masks, its predictions have boxes only")
        chosen.discard("masks")
    return [shape for shape in SHAPES if shape in chosen]


def truth_hash(source: AnnotatedSource) -> str:
    """Hash the metadata and the annotations of a dataset with sha256."""
    digests = [(source.dataset.path / name).read_bytes() for name in ("images.parquet", "annotations.parquet")]
    return data_hash(source.dataset, digests)


def _numbers(instances: Instances) -> NDArray[np.float64]:
    """Concatenate scores, boxes and maskness of all objects."""
    maskness = np.empty(0) if instances.maskness is None else instances.maskness
    return np.concatenate([instances.scores, instances.boxes.ravel(), maskness])


def _rows(number: int, instances: Instances) -> list[Row]:
    count = len(instances.labels)
    masks = [None] * count if instances.masks is None else list(map(encode_mask, instances.masks))
    maskness = np.ones(count) if instances.maskness is None else instances.maskness
    labels = instances.labels.tolist()
    scores = instances.scores.tolist()
    boxes = instances.boxes.tolist()
    columns = (labels, scores, boxes, masks, maskness.tolist())
    return [(number, *row) for row in zip(*columns, strict=True)]


def _scored(config: Detection, detections: Detections, shape: Shape) -> Detections:
    if not config.maskness or shape == "boxes":
        return detections
    # A good box may have a poor mask.
    return detections.with_scores(detections.scores * detections.maskness)


def _frequency(config: Detection, ctx: Context, data: AnnotatedImages, rule: Rule) -> Sequence[str]:
    """Look up the frequency group of each class, empty if groups have no meaning."""
    if config.class_agnostic:
        return ()
    if config.frequency_of:
        counted = ctx.load(config.frequency_of)
        if counted.class_names != data.class_names:
            raise UserError(f"expected the same classes in {config.frequency_of} and {config.data}")
        return counted.frequency
    return data.frequency if rule != "coco" else ()
