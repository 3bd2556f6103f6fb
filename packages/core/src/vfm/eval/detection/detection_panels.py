"""Pictures with true and predicted objects side by side, the worst ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vfm.data import BadSample
from vfm.data.annotated import AnnotatedSource
from vfm.eval.dense.dense_panels import GAP, NUM_PICTURES, join
from vfm.eval.dense.object_drawing import SHOWN_SIDE, draw_objects
from vfm.eval.detection.detection_errors import KINDS, MIN_SCORE
from vfm.eval.detection.detections import Detections
from vfm.interfaces import Context, ImagesPanel, Picture


def add_detection_panels(
    ctx: Context, source: AnnotatedSource, found: Mapping[str, Detections], errors: Mapping[int, Counter[str]]
) -> None:
    """Write the pictures with the most errors (those of the first model): true objects, then each model's."""
    pictures: list[Picture] = []
    for number in worst_images(errors)[:NUM_PICTURES]:
        try:
            picture = source.picture(number)
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
        pictures.append(Picture(file=file, caption=f"{source.keys[number]}: {kinds}"))
    note = (
        f"True objects, then those of {', '.join(found)} with a score of {MIN_SCORE} or more; the numbers are those of"
        f" {next(iter(found))}."
    )
    width = (1 + len(found)) * (SHOWN_SIDE + GAP) - GAP
    ctx.panel(ImagesPanel(title="Worst pictures", note=note, order=40, pictures=pictures, width=width))


def worst_images(errors: Mapping[int, Counter[str]]) -> list[int]:
    """Return the images by the number of wrong detections and missed objects in them, most first."""
    return sorted(errors, key=lambda image: errors[image]["right"] - sum(errors[image].values()))
