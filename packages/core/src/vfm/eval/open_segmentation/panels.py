"""Draw the scores of rules, models and classes, and maps side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.panels import overlay, palette
from vfm.eval.dense.dense_panels import join, share_right
from vfm.eval.open_segmentation.classes import EvaluatedClasses
from vfm.eval.open_segmentation.guesses import class_shares, guess_by_shares, one_class, uniform_guess
from vfm.eval.segmentation.segmentation import iou_panel
from vfm.interfaces import Context, ImagesPanel, PanelImage, TablePanel
from vfm.statistics.mean_iou import MeanIou
from vfm.statistics.resampling import mean_of_known

Pair = tuple[str, str]  # model and rule
SIDE = 120  # pixels of one map


def rules_panel(totals: Mapping[Pair, MeanIou]) -> TablePanel:
    """Build the table of mean IoU, with rules in rows, models in columns, and gaps to the first model."""
    models, rules = _models_and_rules(totals)
    rows: list[list[str | float | int | None]] = []
    for rule in rules:
        first = 100 * mean_iou(totals[models[0], rule])
        values = [round(first, 1)]
        gaps = []
        for model in models[1:]:
            value = 100 * mean_iou(totals[model, rule])
            values.append(round(value, 1))
            gaps.append(round(value - first, 1) + 0.0)  # no -0
        rows.append([rule, *values, *gaps])
    gap_names = [f"{model} - {models[0]}" for model in models[1:]]
    note = "Mean IoU in percent. Rules of the last block differ more than models: compare models within a row."
    return TablePanel(title="Mean IoU by rule", note=note, order=10, columns=["rule", *models, *gap_names], rows=rows)


def scale_panel(counts: MeanIou, ceilings: Mapping[str, MeanIou]) -> TablePanel:
    """Build the table of scores of random guesses, and of a perfect model on each model's grid of patches."""
    shares = class_shares(counts)
    rows: list[list[str | float | int | None]] = [
        ["guess: each class equally often", round(100 * uniform_guess(shares), 1)],
        ["guess: each class by its share", round(100 * guess_by_shares(shares), 1)],
        ["the most frequent class everywhere", round(100 * one_class(shares), 1)],
    ]
    for name, counts_of_model in ceilings.items():
        rows.append([f"ceiling of the patches of {name}", round(100 * mean_iou(counts_of_model), 1)])
    note = (
        f"Mean IoU in percent, over {len(counts.true)} images and {int((shares > 0).sum())} classes with pixels; the"
        " ceiling takes the most frequent class of each patch."
    )
    return TablePanel(title="How to read these numbers", note=note, order=20, columns=["", "mIoU"], rows=rows)


def class_panel(names: Sequence[str], totals: Mapping[Pair, MeanIou], rule: str) -> TablePanel:
    """Build the table of the IoU of each class with one rule.

    Args:
        names: Names of the classes.
        totals: IoU by model and rule.
        rule: Name of the rule.
    """
    of_rule = {model: counts for (model, name), counts in totals.items() if name == rule}
    panel = iou_panel(names, of_rule)
    return panel.model_copy(update={"title": f"Classes by IoU, rule {rule}"})


def _models_and_rules(pairs: Iterable[Pair]) -> tuple[list[str], list[str]]:
    """List the models and the rules of some pairs, each once."""
    models, rules = zip(*pairs, strict=True)
    return list(dict.fromkeys(models)), list(dict.fromkeys(rules))


def add_maps(
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    classes: EvaluatedClasses,
    maps: Mapping[Pair, Sequence[NDArray[np.int64]]],
) -> None:
    """Write some images with their labels and the maps of every rule, one row for each model.

    Args:
        ctx: Context of the stage.
        source: Annotated images.
        numbers: Numbers of the images.
        classes: The evaluated classes.
        maps: Maps of the images by model and rule.
    """
    colours = palette(len(classes.names))
    models, rules = _models_and_rules(maps)
    entries: list[PanelImage] = []
    (ctx.directory / "panels").mkdir(parents=True, exist_ok=True)
    for row, number in enumerate(numbers):
        image = source.image(number)
        truth = classes.truth(source.semantic(number))
        for model in models:
            views = [image, overlay(image, truth, colours)]
            shares = []
            for rule in rules:
                predicted = maps[model, rule][row]
                views.append(overlay(image, predicted, colours))
                shares.append(f"{100 * share_right(truth, predicted):.0f}")
            file = f"panels/open-{len(entries)}.jpg"
            join(views, SIDE).save(ctx.directory / file, quality=90)
            caption = f"{source.keys[number]}, {model}: {', '.join(shares)} % right"
            entries.append(PanelImage(file=file, caption=caption))
    note = f"Image, labels, and the maps of {', '.join(rules)}; from the worst to the best of the first rule and model."
    ctx.panel(ImagesPanel(title="Maps by rule", note=note, order=40, pictures=entries, width=(2 + len(rules)) * SIDE))


def mean_iou(counts: MeanIou) -> float:
    """Compute the mean IoU over the classes that occur."""
    return float(mean_of_known(counts.by_class()))
