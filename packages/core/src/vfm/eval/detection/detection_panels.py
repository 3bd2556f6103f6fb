"""Panels of detection: recall by the rule, scores by class, kinds of errors, and the images with the most errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vfm.data import BadSample
from vfm.data.annotated import AnnotatedSource
from vfm.eval.base import values_of
from vfm.eval.dense.dense_panels import GAP, NUM_IMAGES, class_table, join
from vfm.eval.dense.object_drawing import SHOWN_SIDE, draw_objects
from vfm.eval.dense.stages import Detection
from vfm.eval.detection.detection_confusions import detection_confusion_panel
from vfm.eval.detection.detection_errors import KINDS, MIN_SCORE, error_panel, errors_by_image
from vfm.eval.detection.detection_rules import GroundTruth, Rule
from vfm.eval.detection.detection_scores import PREFIX, DetectionScores
from vfm.eval.detection.detections import Detections
from vfm.interfaces import AnnotatedImages, Context, ImagesPanel, PanelImage, TablePanel


def add_panels(
    config: Detection,
    ctx: Context,
    source: AnnotatedSource,
    predicted: Mapping[str, Detections],
    scored: Mapping[str, Sequence[DetectionScores]],
    rule: Rule,
    max_dets: int,
) -> None:
    """Write the panels of an evaluation.

    Args:
        config: Settings of the evaluation.
        ctx: Context of the stage.
        source: Annotated images.
        predicted: Detections by model.
        scored: Scores by model, one for each compared shape.
        rule: Rule of the scores.
        max_dets: Most detections that count.
    """
    ctx.panel(_rule_panel(rule, max_dets, source, scored))
    first, *_ = scored.values()
    if not config.class_agnostic:
        for number in range(len(first)):
            ctx.panel(_class_panel(source.dataset, {name: by_shape[number] for name, by_shape in scored.items()}))
    shape = first[0].shape
    errors = {}
    for name, detections in predicted.items():
        errors[name] = errors_by_image(detections, GroundTruth.of(source, "coco"), shape)
    ctx.panel(error_panel(errors))
    if not (config.class_agnostic or source.dataset.federated):
        model, detections = list(predicted.items())[-1]
        ctx.panel(detection_confusion_panel(detections, GroundTruth.of(source, "coco"), shape, model))
    if source.dataset.has_images:
        add_detection_panels(ctx, source, predicted, next(iter(errors.values())))


def _rule_panel(
    rule: Rule, max_dets: int, source: AnnotatedSource, scored: Mapping[str, Sequence[DetectionScores]]
) -> TablePanel:
    rows: list[list[str | float | int | None]] = []
    for name, by_shape in scored.items():
        for scores in by_shape:
            average_recall = values_of(scores.scores())[f"{PREFIX[scores.shape]}_ar"]
            recalls = scores.recalls()
            shares = [round(100 * value, 1) for value in (recalls[1], recalls[10], average_recall)]
            rows.append([name, scores.shape, *shares])
    unit = {"coco": "image and class", "lvis": "image", "lvis_fixed": "class"}[rule]
    note = (
        f"{rule}'s rule, at most {max_dets} detections of each {unit}, on {len(source)} images. Average precision on"
        " few images is too high; its interval is for as many images, and two models are compared on the same ones."
    )
    columns = ["model", "compared", "recall with 1", "with 10", f"with {max_dets}"]
    return TablePanel(title="Rule and recall", note=note, order=20, columns=columns, rows=rows)


def _class_panel(data: AnnotatedImages, scored: Mapping[str, DetectionScores]) -> TablePanel:
    columns = {}
    for name, scores in scored.items():
        columns[f"{name} AP"], columns[f"{name} AP50"] = 100 * scores.by_class().T
    title = f"Classes by {PREFIX[next(iter(scored.values())).shape]} AP"
    return class_table(data.class_names, columns, title=title, note="The worst classes first.")


def add_detection_panels(
    ctx: Context, source: AnnotatedSource, predicted: Mapping[str, Detections], errors: Mapping[int, Counter[str]]
) -> None:
    """Write the images with the most errors by the first model, with the true objects and each model's objects.

    Args:
        ctx: Context of the stage.
        source: Annotated images.
        predicted: Detections by model.
        errors: Errors of the first model by image.
    """
    entries: list[PanelImage] = []
    class_names = source.dataset.class_names
    for number in worst_images(errors)[:NUM_IMAGES]:
        try:
            image = source.image(number)
        except BadSample:
            continue
        objects = source.objects(number)
        shown = [draw_objects(image, objects.labels, objects.boxes, objects.counts, class_names)]
        for detections in predicted.values():
            visible = detections[(detections.image == number) & (detections.scores >= MIN_SCORE)]
            shown.append(
                draw_objects(image, visible.labels, visible.boxes, visible.counts, class_names, visible.scores)
            )
        file = f"panels/objects-{len(entries)}.jpg"
        (ctx.directory / "panels").mkdir(parents=True, exist_ok=True)
        join(shown, SHOWN_SIDE).save(ctx.directory / file, quality=90)
        kinds = ", ".join(f"{errors[number][kind]} {kind}" for kind in KINDS if errors[number][kind])
        entries.append(PanelImage(file=file, caption=f"{source.keys[number]}: {kinds}"))
    note = (
        f"True objects, then detections of {', '.join(predicted)} with a score of {MIN_SCORE} or more. The numbers are"
        f" for {next(iter(predicted))}."
    )
    width = (1 + len(predicted)) * (SHOWN_SIDE + GAP) - GAP
    ctx.panel(ImagesPanel(title="Worst images", note=note, order=40, pictures=entries, width=width))


def worst_images(errors: Mapping[int, Counter[str]]) -> list[int]:
    """Sort images by their number of wrong detections and missed objects, most first."""
    return sorted(errors, key=lambda image: errors[image]["right"] - sum(errors[image].values()))
