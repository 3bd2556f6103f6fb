"""How often the intervals of set scores cover what they are for: python packages/core/benchmarks/interval_coverage.py

Images with three objects on average, in classes by Zipf's law, and two detectors or segmenters whose errors are
correlated. A trial draws a set of images, and computes each score with its interval and the paired difference of the
two models by the code of the evaluations. The truth is the mean over all sets. Counted are the shares of intervals
that cover it, of tests of two equal models with p at most 0.05, and of tests with p at most 0.05 where the models
differ by the difference that is said to be seen in 80 % of cases. Writes
`results/coverage.json`. About three CPU minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfm.statistics import ResampledScore, detectable_difference, image_weights
from vfm.statistics.mean_iou import MeanIou
from vfm.statistics.panoptic_quality import PanopticQuality
from vfm.statistics.precision_recall import ClassRows, precision_recall
from vfm.statistics.resampling import mean_of_known

RESULTS = Path(__file__).parent / "results"
SETTINGS = [(60, 12), (300, 12), (300, 40)]  # images and classes
SKILL = 0.4  # of the first model
Floats = NDArray[np.float64]
Scores = dict[str, ResampledScore]


class Images:
    """Objects of a set of images: the image, the class and the difficulty of each."""

    def __init__(self, rng: np.random.Generator, num_images: int, num_classes: int) -> None:
        self.rng = rng
        self.num_images = num_images
        self.shares = 1 / np.arange(1, num_classes + 1)
        self.shares /= self.shares.sum()
        self.image = np.repeat(np.arange(num_images), rng.poisson(3.0, num_images))
        self.label = rng.choice(num_classes, len(self.image), p=self.shares)
        self.hardness = rng.normal(size=num_images)[self.image] + rng.normal(size=len(self.image))

    def margins(self, skill: float) -> Floats:
        """Draw how well a model predicts each object. Above 0 it is found."""
        return skill - self.hardness + 0.6 * self.rng.normal(size=len(self.image))

    def false_objects(self, mean: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the image and the class of objects that are not there."""
        image = np.repeat(np.arange(self.num_images), self.rng.poisson(mean, self.num_images))
        return image, self.rng.choice(len(self.shares), len(image), p=self.shares)

    def table(self, image: NDArray[np.int64], label: NDArray[np.int64], values: Any = 1.0) -> Floats:
        """Sum values by image and class, (I, K)."""
        sums = np.zeros((self.num_images, len(self.shares)))
        np.add.at(sums, (image, label), values)
        return sums


def detect(images: Images, skill: float, num_resamples: int) -> Scores:
    """Compute the average precision at one threshold."""
    margin = images.margins(skill)
    hit = margin > 0
    false_image, false_label = images.false_objects(1.5)
    scores = np.concatenate([margin[hit] + 0.5, images.rng.normal(0.6 - skill, 0.7, len(false_image))])
    image = np.concatenate([images.image[hit], false_image])
    label = np.concatenate([images.label[hit], false_label])
    right = np.arange(len(scores)) < hit.sum()
    order = np.argsort(-scores, kind="stable")
    classes = []
    for number in range(len(images.shares)):
        rows = order[label[order] == number]
        objects = images.image[images.label == number]
        nothing = np.zeros((1, 1, len(rows)), dtype=bool)
        ranks = np.zeros(len(rows), dtype=np.int64)
        counts = np.ones((1, len(objects)), dtype=bool)
        classes.append(ClassRows(image[rows], right[rows][None, None], nothing, ranks, objects, counts))

    def score(weights: NDArray[np.int64]) -> Floats:
        return mean_of_known(np.stack([precision_recall(rows, weights).precision[:, 0, 0] for rows in classes], axis=1))

    value = float(score(np.ones((1, images.num_images), dtype=np.int64))[0])

    def resampled(seed: int) -> Floats:
        return score(image_weights(images.num_images, num_resamples, seed))

    return {"AP": ResampledScore("ap", value, images.num_images, resampled)}


def segment_all(images: Images, skill: float, num_resamples: int) -> Scores:
    """Compute panoptic and segmentation quality."""
    iou = 1 / (1 + np.exp(-images.margins(skill)))
    hit = iou > 0.5
    true = images.table(images.image[hit], images.label[hit])
    missed = images.table(images.image[~hit], images.label[~hit])
    quality = PanopticQuality(
        images.table(images.image[hit], images.label[hit], iou[hit]),
        true.astype(np.int64),
        images.table(*images.false_objects(1.0)).astype(np.int64),
        missed.astype(np.int64),
    )
    scores = quality.scores(np.ones(len(images.shares), dtype=bool), num_resamples)
    return {score.metric.upper(): score for score in scores if score.metric in ("pq", "sq")}


def segment(images: Images, skill: float, num_resamples: int) -> Scores:
    """Compute the mean IoU."""
    area = 1000 * np.exp(images.rng.normal(size=len(images.image)))
    right = images.table(images.image, images.label, area / (1 + np.exp(-images.margins(skill))))
    false_image, false_label = images.false_objects(2.0)
    false = images.table(false_image, false_label, 300 * np.exp(images.rng.normal(size=len(false_image))))
    true = images.table(images.image, images.label, area)
    counts = (part.round().astype(np.int64) for part in (right, right + false, true))
    return {"mean IoU": MeanIou(*counts).scores(num_resamples=num_resamples)[0]}


MODELS: list[Callable[[Images, float, int], Scores]] = [detect, segment_all, segment]


def simulate(num_images: int, num_classes: int, trials: int, num_resamples: int) -> list[dict[str, Any]]:
    """Count for each score how often its intervals cover, and how often its tests say that models differ."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for trial in range(trials):
        rng = np.random.default_rng([num_images, num_classes, trial])
        images = Images(rng, num_images, num_classes)
        for evaluate in MODELS:
            models = [evaluate(images, skill, num_resamples) for skill in (SKILL, SKILL, SKILL + 0.25)]
            for name in models[0]:
                first, equal, better = (scores[name] for scores in models)
                row: dict[str, Any] = {"values": (first.value, better.value), "interval": first.interval(trial)}
                row["equal"] = equal.difference(first, trial)
                row["better"] = better.difference(first, trial)
                rows.setdefault(name, []).append(row)
    return [{"score": name, "images": num_images, "classes": num_classes, **_shares(of)} for name, of in rows.items()]


def _shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    values = np.array([row["values"] for row in rows])
    single, gap = float(values[:, 0].mean()), float((values[:, 1] - values[:, 0]).mean())
    clear = [row["better"].p_value <= 0.05 for row in rows]
    sizes = np.array([detectable_difference((row["better"].low, row["better"].high)) for row in rows])
    # The tests of the simulated gap, moved to the difference that each is said to see in 80 % of cases.
    gaps = values[:, 1] - values[:, 0]
    half = np.array([(row["better"].high - row["better"].low) / 2 for row in rows])
    seen = np.abs(gaps - gap + np.median(sizes)) > half
    return {
        "value": round(single, 4),
        "interval": _share([row["interval"][0] <= single <= row["interval"][1] for row in rows]),
        "difference": _share([row["better"].low <= gap <= row["better"].high for row in rows]),
        "false": _share([row["equal"].p_value <= 0.05 for row in rows]),
        "gap": round(gap, 4),
        "clear": _share(clear),
        "detectable": round(float(np.median(sizes)), 4),
        "seen": _share(seen.tolist()),
    }


def _share(outcomes: list[bool]) -> float:
    return round(100 * float(np.mean(outcomes)), 1)


def main() -> None:
    """Simulate all settings, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="sets of images for each setting")
    parser.add_argument("--resamples", type=int, default=200, help="resamples for each interval")
    arguments = parser.parse_args()
    rows = []
    for num_images, num_classes in SETTINGS:
        rows += simulate(num_images, num_classes, arguments.trials, arguments.resamples)
        print(*rows[-4:], sep="\n", flush=True)
    facts = {"trials": arguments.trials, "resamples": arguments.resamples, "rows": rows}
    (RESULTS / "coverage.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
