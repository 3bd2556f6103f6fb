"""Compute the mean IoU of CLIP models with class names alone, by rule of the last block (`eval.open_segmentation`).

Sources of the common part (templates, windows, softmax over words, threshold): the published code of SCLIP
(arXiv:2312.01597) and NACLIP (arXiv:2404.08181). Unlike there, the background threshold is cross-validated, so it is
not chosen on the images that it is scored on.
"""

# I images, W words, K classes, (H, W) size of an image

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip import OPENAI_IMAGENET_TEMPLATES
from PIL import Image

from vfm.data.annotated import AnnotatedSource
from vfm.eval.classify.zero_shot import zero_shot_classifier
from vfm.eval.dense.annotated_images import each_image
from vfm.eval.encode.encoders import load_encoder
from vfm.eval.encode.hashes import data_hash, item_digest
from vfm.eval.open_segmentation.classes import EvaluatedClasses, evaluated_classes, short_side_of
from vfm.eval.open_segmentation.decisions import (
    Guess,
    ThresholdCounts,
    at_thresholds,
    choose_thresholds,
    counts_by_threshold,
    decide,
    halves,
)
from vfm.eval.open_segmentation.guesses import ceiling_counts, class_shares, uniform_guess
from vfm.eval.open_segmentation.panels import Pair, add_maps, class_panel, rules_panel, scale_panel
from vfm.eval.open_segmentation.segmenter import Segmenter, SlidingWindowSettings
from vfm.eval.open_segmentation.stages import OpenSegmentation, check_open_segmentation_data
from vfm.eval.segmentation.segmentation import check_labelled, pixel_table
from vfm.interfaces import Context, Evaluated, ModelResult, Ref
from vfm.models import ClipModel, ImageEncoder
from vfm.models.vision.last_block import last_block_reader, papers_positions
from vfm.models.vision.vision_sizes import resample_positions
from vfm.statistics.mean_iou import MeanIou, PixelCounts
from vfm.statistics.resampling import ResampledScore
from vfm.train import leave_to_first, resolve_device

IMAGENET_TEMPLATES = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
RESAMPLE = {"exact": resample_positions, "papers": papers_positions}
NUM_IMAGES = 6  # of the panel


@dataclass(frozen=True)
class Method:
    """Settings that all images are segmented with.

    They are the classes, the models with their rules, and the settings of the decision.
    """

    config: OpenSegmentation
    classes: EvaluatedClasses
    segmenters: Mapping[str, Segmenter]

    @property
    def thresholds(self) -> list[float]:
        """Candidates for the background threshold, ascending. Without a background, one that has no effect."""
        if self.classes.background is None:
            return [0.0]
        threshold = self.config.threshold
        if threshold == "held_out":
            return sorted(set(self.config.thresholds))
        return [threshold]

    def guesses(self, model: str, image: Image.Image, key: str) -> Iterator[tuple[str, Guess]]:
        """Segment an image, and yield each rule with the best class of each pixel.

        Args:
            model: Name of the model.
            image: The image.
            key: Key of the image, for messages.
        """
        segmenter = self.segmenters[model]
        background = self.classes.background
        owners = torch.from_numpy(self.classes.owners).to(segmenter.classifier.device)
        for rule, cosines in segmenter.cosines(image, key):
            scale = self.config.logit_scale
            min_area = self.config.min_area
            yield rule, decide(cosines, owners, scale, background=background, min_area=min_area)


@dataclass
class Scored:
    """Results of a model with a rule.

    They are the index of each image's threshold, (I,), and the counts of all images.
    """

    chosen: NDArray[np.int64]
    counts: MeanIou


def evaluate_open_segmentation(config: OpenSegmentation, ctx: Context, encoders: Mapping[str, ClipModel]) -> Evaluated:
    """Evaluate CLIP models on all images of a dataset with every rule.

    Raises:
        UserError: If a model has no patch tokens in the joint space, classes and words do not fit the dataset, or no
            pixel is labelled.
    """
    data = ctx.load(config.data)
    check_open_segmentation_data(config, data)
    source = AnnotatedSource(data)
    classes = evaluated_classes(config, data)
    method = Method(config, classes, _segmenters(config, ctx, encoders, classes))
    numbers: list[int] = []
    digests: list[bytes] = []
    counts: defaultdict[Pair, list[ThresholdCounts]] = defaultdict(list)
    ceilings: defaultdict[str, list[PixelCounts]] = defaultdict(list)
    count = partial(_count, method, source)
    for number, counted in each_image(source, config.reading, ctx, count, lambda _: _Counted(b"", {}, {})):
        numbers.append(number)
        digests.append(counted.digest)
        for name, ceiling in counted.ceilings.items():
            ceilings[name].append(ceiling)
        for pair, of_image in counted.counts.items():
            counts[pair].append(of_image)
    leave_to_first()
    # The threshold is chosen on one half of the images and applied to the other.
    half = halves(len(numbers), config.seed)
    scored = {}
    for pair, of_images in counts.items():
        scored[pair] = _scored(of_images, half)
    check_labelled(config.data, next(iter(scored.values())).counts)
    _warn_at_the_ends(method, ctx, scored)
    keys = source.keys_of(numbers)
    results = {}
    total_ceilings = {}
    for name in encoders:
        results[name] = _result(method, scored, name, keys, half)
        total_ceilings[name] = MeanIou.of(ceilings[name])
    _add_panels(method, ctx, source, numbers, scored, total_ceilings)
    return Evaluated(data_hash(data, digests), results)


@dataclass(frozen=True)
class _Counted:
    """Counts of an image.

    Attributes:
        digest: Hash of the image and its labels.
        ceilings: Counts by model for the best possible map on the model's grid of patches.
        counts: Counts by model and rule.
    """

    digest: bytes
    ceilings: dict[str, PixelCounts]
    counts: dict[Pair, ThresholdCounts]


def _count(method: Method, source: AnnotatedSource, number: int) -> _Counted:
    """Count the pixels of an image.

    Raises:
        BadSample: The image cannot be read.
    """
    image = source.image(number)
    key = source.keys[number]
    classes = method.classes
    truth = classes.truth(source.semantic(number))
    counted = _Counted(item_digest(key, [image.tobytes(), truth.tobytes()]), {}, {})
    for name, segmenter in method.segmenters.items():
        counted.ceilings[name] = ceiling_counts(truth, segmenter.grid(image), len(classes.names))
        for rule, guess in method.guesses(name, image, key):
            counted.counts[name, rule] = counts_by_threshold(
                truth, guess, method.thresholds, classes.background, len(classes.names)
            )
    return counted


def _segmenters(
    config: OpenSegmentation, ctx: Context, encoders: Mapping[str, ClipModel], classes: EvaluatedClasses
) -> dict[str, Segmenter]:
    def load(ref: Ref[Any]) -> ImageEncoder:
        return load_encoder(ctx.load(ref), resolve_device(config.runtime))

    rules = {rule.name: rule.build(load) for rule in config.rules}
    templates = config.templates or IMAGENET_TEMPLATES
    segmenters = {}
    for name, model in encoders.items():
        reader = last_block_reader(model, RESAMPLE[config.positions])
        words = zero_shot_classifier(model, classes.all_words, templates, config.micro_batch_size, name)
        window = config.window or model.preprocess.image_size
        side = None if window == "whole" else int(window)
        short_side = short_side_of(config, side or model.preprocess.image_size)
        refine = config.refine == "pamr"
        windows = SlidingWindowSettings(short_side, side, config.stride, config.micro_batch_size, refine)
        segmenters[name] = Segmenter(model, reader, words.to(model.device), rules, windows, name)
    return segmenters


def _scored(counts: Sequence[ThresholdCounts], half: NDArray[np.int64]) -> Scored:
    chosen = choose_thresholds(counts, half)
    return Scored(chosen, at_thresholds(counts, chosen))


def _warn_at_the_ends(method: Method, ctx: Context, scored: Mapping[Pair, Scored]) -> None:
    """Warn if the largest candidate was chosen, since a larger threshold may be better."""
    last = len(method.thresholds) - 1
    if not last:
        return
    at_end = [f"{name} {rule}" for (name, rule), result in scored.items() if (result.chosen == last).any()]
    if at_end:
        shown = ", ".join(at_end[:3]) + (", ..." if len(at_end) > 3 else "")
        largest = method.thresholds[last]
        ctx.warn(f"the largest of the thresholds, {largest}, was chosen for {shown}: larger ones may score higher")


def _result(
    method: Method, scored: Mapping[Pair, Scored], model: str, keys: Sequence[str], half: NDArray[np.int64]
) -> ModelResult:
    config = method.config
    classes = method.classes
    windows = method.segmenters[model].windows
    scores: list[ResampledScore] = []
    tables = {}
    thresholds = {}
    for rule in config.rules:
        result = scored[model, rule.name]
        chance = {"miou": uniform_guess(class_shares(result.counts)), "pixel_acc": 1 / len(classes.names)}
        for score in result.counts.scores(num_resamples=config.num_resamples):
            if score.metric in chance:
                metric = f"{rule.name}_{score.metric}"
                scores.append(replace(score, metric=metric, chance=chance[score.metric]))
        tables[f"images_{rule.name}"] = pixel_table(keys, result.counts)
        # All images of a half have the same threshold, so the first one has it.
        firsts = [*result.chosen[half == 0][:1], *result.chosen[half == 1][:1]]
        thresholds[rule.name] = np.array(method.thresholds)[firsts].tolist()
    size = f"windows of {windows.side}" if windows.side else "whole"
    details = {
        "resize_mode": f"shorter side {windows.short_side}, {size}",
        "rules": [rule.model_dump(mode="json") for rule in config.rules],
        "num_classes": len(classes.names),
        "words": classes.words,
        "templates": len(config.templates or IMAGENET_TEMPLATES),
    }
    if classes.background is not None:
        details["thresholds"] = thresholds
    return ModelResult(scores, tables, details)


def _add_panels(
    method: Method,
    ctx: Context,
    source: AnnotatedSource,
    numbers: Sequence[int],
    scored: Mapping[Pair, Scored],
    ceilings: Mapping[str, MeanIou],
) -> None:
    """Write the panels. Maps are computed again, since the maps of all images do not fit in memory."""
    counts = {pair: result.counts for pair, result in scored.items()}
    first = next(iter(counts.values()))
    ctx.panel(rules_panel(counts))
    ctx.panel(scale_panel(first, ceilings))
    ctx.panel(class_panel(method.classes.names, counts, method.config.rules[0].name))
    shares = first.right.sum(axis=1) / np.maximum(1, first.true.sum(axis=1))
    spread = np.linspace(0, len(shares) - 1, min(NUM_IMAGES, len(shares))).round().astype(int)
    rows = np.argsort(shares, kind="stable")[spread].tolist()
    shown = []
    maps: defaultdict[Pair, list[NDArray[np.int64]]] = defaultdict(list)
    for row in rows:
        number = numbers[row]
        shown.append(number)
        for model in method.segmenters:
            for rule, guess in method.guesses(model, source.image(number), source.keys[number]):
                threshold = method.thresholds[scored[model, rule].chosen[row]]
                maps[model, rule].append(guess.at(threshold, method.classes.background))
    add_maps(ctx, source, shown, method.classes, maps)
