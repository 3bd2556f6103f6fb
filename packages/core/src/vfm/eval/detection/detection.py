"""Work of `eval.detection`: predict or read detections, score them by COCO's or LVIS' rule, and compare the models."""

# K classes

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.base import UserError
from vfm.data import BadSample
from vfm.data.annotated import AnnotatedSource, encode_mask
from vfm.eval.dense.annotated_images import each_result
from vfm.eval.dense.dense_models import Predictors
from vfm.eval.dense.dense_panels import GAP, NUM_PICTURES, join
from vfm.eval.dense.object_drawing import SHOWN_SIDE, draw_objects
from vfm.eval.dense.predictor import Instances
from vfm.eval.dense.stages import Detection
from vfm.eval.detection.detection_errors import KINDS, MIN_SCORE, error_panel, errors_by_image
from vfm.eval.detection.detection_rules import MAX_DETS, Rule, Shape, Truth, match_all
from vfm.eval.detection.detection_scores import PREFIX, DetectionScores
from vfm.eval.detection.detections import Detections, Row, read_results, write_results_file
from vfm.eval.detection.soft_nms import soften
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import data_hash
from vfm.interfaces import AnnotatedImages, Context, Evaluated, ImagesPanel, ModelResult, PanelImage, TablePanel
from vfm.train.parallel.sharing import leave_to_first

SHAPES: tuple[Shape, ...] = ("boxes", "masks")
CLASSES_SHOWN = 60


def evaluate_detection(config: Detection, ctx: Context, source: AnnotatedSource, models: Predictors) -> Evaluated:
    """Evaluate models and files of results on all images of a dataset.

    Raises:
        UserError: a file does not fit the dataset, or something to compare is missing.
    """
    found = predict(config, ctx, source, models)
    leave_to_first()
    found |= {name: read_results(path, source) for name, path in config.predictions.items()}
    if config.soft_nms:
        found = {name: soften(one) for name, one in found.items()}
    rule = choose_rule(config, source.dataset)
    shapes = choose_shapes(config, source.dataset, found, models)
    max_dets = config.max_dets or MAX_DETS[rule]
    truth = Truth.of(source, rule, agnostic=config.class_agnostic)
    if (truth.objects.crowd | truth.objects.ignored).all():
        raise UserError(f"{config.data}: expected annotated objects, got none that counts")
    frequency = _frequency(config, ctx, source.dataset, rule)
    scored = {
        name: [
            DetectionScores(
                shape,
                list(match_all(_scored(config, detections, shape), truth, shape, max_dets)),
                len(source),
                frequency,
                config.num_resamples,
            )
            for shape in shapes
        ]
        for name, detections in found.items()
    }
    details = {
        "rule": rule,
        "max_dets": max_dets,
        "soft_nms": config.soft_nms,
        "maskness": config.maskness,
        "class_agnostic": config.class_agnostic,
        "num_images": len(source),
    }
    results = {
        name: ModelResult([score for one in parts for score in one.scores()], {}, details)
        for name, parts in scored.items()
    }
    if config.has_something_to_evaluate:
        for name in models:
            (ctx.directory / "predictions").mkdir(exist_ok=True)
            write_results_file(ctx.directory / "predictions" / f"{name}.json", found[name], source)
        for name, result in results.items():
            first = result.scores[0]
            ctx.log(f"{name}: {first.metric} {100 * first.value:.1f} by {rule}'s rule, max_dets {max_dets}")
        _add_panels(config, ctx, source, found, scored, rule, max_dets)
    return Evaluated(truth_hash(source), results)


def predict(config: Detection, ctx: Context, source: AnnotatedSource, models: Predictors) -> dict[str, Detections]:
    """Return the detections of each model in all images; each image is decoded once.

    Of several processes that share an evaluation, the first one gets them, the others none.
    """

    def detect(batch: list[tuple[int, Image.Image]]) -> list[dict[str, list[Row]]]:
        found: list[dict[str, list[Row]]] = [{} for _ in batch]
        for name, model in models.items():
            instances = model.detect([picture for _, picture in batch])
            for (number, _), rows, one in zip(batch, found, instances, strict=True):
                check_finite(_numbers(one)[None], name, [source.keys[number]])
                rows[name] = _rows(number, one)
        return found

    def without_rows(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
        return {name: [] for name in found}

    if not models:
        return {}
    of_images = each_result(
        source, config.reading, ctx, source.image, detect, batch_size=config.micro_batch_size,
        for_others=without_rows,
    )  # fmt: skip
    by_image = [rows for _, rows in of_images]
    return {name: Detections.of(row for rows in by_image for row in rows[name]) for name in models}


def _add_panels(
    config: Detection,
    ctx: Context,
    source: AnnotatedSource,
    found: Mapping[str, Detections],
    scored: Mapping[str, Sequence[DetectionScores]],
    rule: Rule,
    max_dets: int,
) -> None:
    ctx.panel(_rule_panel(rule, max_dets, source, scored))
    shapes = [one.shape for one in next(iter(scored.values()))]
    for place in range(len(shapes)) if not config.class_agnostic else ():
        ctx.panel(_class_panel(source.dataset, {name: parts[place] for name, parts in scored.items()}))
    errors = {name: errors_by_image(one, Truth.of(source, "coco"), shapes[0]) for name, one in found.items()}
    ctx.panel(error_panel(errors))
    if source.dataset.has_images:
        add_detection_panels(ctx, source, found, next(iter(errors.values())))


def choose_rule(config: Detection, data: AnnotatedImages) -> Rule:
    """Return the rule: LVIS' for federated labels unless another is set.

    Raises:
        UserError: LVIS' rule for images without lists of absent classes. It would drop every detection of a class that
            an image lacks, which raised AP from 47.5 to 67.5 % on made scenes of 120 classes.
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
    config: Detection, data: AnnotatedImages, found: Mapping[str, Detections], models: Predictors
) -> list[Shape]:
    """Return what is compared: boxes, and masks where the dataset and every model and file have them.

    Raises:
        UserError: masks are wanted, and a model has none.
    """
    lacking = [name for name, model in models.items() if "masks" not in model.tasks]
    lacking += [name for name in config.predictions if None in found[name].counts or not len(found[name])]
    if config.shapes:
        if "masks" in config.shapes and lacking:
            raise UserError(f"{lacking[0]}: shapes has masks, its predictions have boxes only")
        return [shape for shape in SHAPES if shape in config.shapes]
    return [shape for shape in SHAPES if shape in data.labels and (shape == "boxes" or not lacking)]


def truth_hash(source: AnnotatedSource) -> str:
    """Return the sha256 of a dataset's facts and of its annotations."""
    digests = [(source.dataset.path / name).read_bytes() for name in ("images.parquet", "annotations.parquet")]
    return data_hash(source.dataset, digests)


def _numbers(found: Instances) -> NDArray[np.float64]:
    """Return scores, boxes and maskness of all objects, one after the other."""
    maskness = np.empty(0) if found.maskness is None else found.maskness
    return np.concatenate([found.scores, found.boxes.ravel(), maskness])


def _rows(number: int, found: Instances) -> list[Row]:
    count = len(found.labels)
    masks = [None] * count if found.masks is None else [encode_mask(mask) for mask in found.masks]
    maskness = np.ones(count) if found.maskness is None else found.maskness
    columns = (found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), masks, maskness.tolist())
    return [(number, *row) for row in zip(*columns, strict=True)]


def _scored(config: Detection, detections: Detections, shape: Shape) -> Detections:
    if not config.maskness or shape == "boxes":
        return detections
    return detections.with_scores(detections.scores * detections.maskness)


def _frequency(config: Detection, ctx: Context, data: AnnotatedImages, rule: Rule) -> Sequence[str]:
    """Return the group of each class; none where the groups have no meaning."""
    if config.class_agnostic:
        return ()
    if config.frequency_of:
        counted = ctx.load(config.frequency_of)
        if counted.class_names != data.class_names:
            raise UserError(f"expected the same classes in {config.frequency_of} and {config.data}")
        return counted.frequency
    return data.frequency if rule != "coco" else ()


def _rule_panel(
    rule: Rule, max_dets: int, source: AnnotatedSource, scored: Mapping[str, Sequence[DetectionScores]]
) -> TablePanel:
    rows: list[list[str | float | int | None]] = []
    for name, one in [(name, one) for name, parts in scored.items() for one in parts]:
        values = {score.metric: score for score in one.scores()}
        ar = values[f"{PREFIX[one.shape]}_ar"]
        recalls = one.recalls()
        rows.append([name, one.shape, *(round(100 * value, 1) for value in (recalls[1], recalls[10], ar.value))])
    unit = {"coco": "image and class", "lvis": "image", "lvis_fixed": "class"}[rule]
    note = (
        f"{rule}'s rule, at most {max_dets} detections of each {unit}, on {len(source)} images. Average precision on"
        " few images is too high; the difference of two models is not. Its interval is reflected at the value."
    )
    columns = ["model", "compared", "recall with 1", "with 10", f"with {max_dets}"]
    return TablePanel(title="Rule and recall", note=note, order=20, columns=columns, rows=rows)


def _class_panel(data: AnnotatedImages, scored: Mapping[str, DetectionScores]) -> TablePanel:
    tables = {name: 100 * one.by_class() for name, one in scored.items()}
    first: NDArray[np.float64] = next(iter(tables.values()))
    known = np.flatnonzero(np.isfinite(first[:, 0]))
    order = known[np.argsort(first[known, 0], kind="stable")][:CLASSES_SHOWN].tolist()
    columns = ["class", *(f"{name} {metric}" for name in tables for metric in ("AP", "AP50"))]
    rows: list[list[str | float | int | None]] = [
        [data.class_names[label], *(round(float(value), 1) for table in tables.values() for value in table[label])]
        for label in order
    ]
    title = f"Classes by {PREFIX[next(iter(scored.values())).shape]} AP"
    return TablePanel(title=title, note="The worst classes first.", order=30, columns=columns, rows=rows)


def add_detection_panels(
    ctx: Context, source: AnnotatedSource, found: Mapping[str, Detections], errors: Mapping[int, Counter[str]]
) -> None:
    """Write the pictures with the most errors (those of the first model): true objects, then each model's."""
    pictures: list[PanelImage] = []
    for number in worst_images(errors)[:NUM_PICTURES]:
        try:
            picture = source.image(number)
        except BadSample:
            continue
        objects = source.objects(number)
        shown = [draw_objects(picture, objects.labels, objects.boxes, objects.counts, source.dataset.class_names)]
        for one in found.values():
            kept = one[(one.image == number) & (one.scores >= MIN_SCORE)]
            shown.append(
                draw_objects(picture, kept.labels, kept.boxes, kept.counts, source.dataset.class_names, kept.scores)
            )
        file = f"panels/objects-{len(pictures)}.jpg"
        (ctx.directory / "panels").mkdir(parents=True, exist_ok=True)
        join(shown, SHOWN_SIDE).save(ctx.directory / file, quality=90)
        kinds = ", ".join(f"{errors[number][kind]} {kind}" for kind in KINDS if errors[number][kind])
        pictures.append(PanelImage(file=file, caption=f"{source.keys[number]}: {kinds}"))
    note = (
        f"True objects, then those of {', '.join(found)} with a score of {MIN_SCORE} or more; the numbers are those of"
        f" {next(iter(found))}."
    )
    width = (1 + len(found)) * (SHOWN_SIDE + GAP) - GAP
    ctx.panel(ImagesPanel(title="Worst pictures", note=note, order=40, pictures=pictures, width=width))


def worst_images(errors: Mapping[int, Counter[str]]) -> list[int]:
    """Return the images by the number of wrong detections and missed objects in them, most first."""
    return sorted(errors, key=lambda image: errors[image]["right"] - sum(errors[image].values()))
