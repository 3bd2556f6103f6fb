"""Objects and regions that a model with a dense head finds in images. Imports torch."""

# H and W height and width of an image

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vfm.api.prediction import Regions
from vfm.data.annotated import encode_mask
from vfm.data.annotated.panels import overlay, palette
from vfm.eval.dense.dense_models import load_predictor
from vfm.eval.dense.object_drawing import draw_objects
from vfm.eval.dense.predictor import Instances
from vfm.eval.encode.sliding_windows import predict_labels
from vfm.interfaces import DenseCheckpoint


@dataclass(frozen=True)
class DensePrediction:
    """What a model found in one image.

    Attributes:
        class_names: names of the labels.
        objects: the objects; None from a model that segments.
        labels: class of each pixel, -1 for none, (H, W); None from a detector.
    """

    class_names: Sequence[str]
    objects: Instances | None = None
    labels: NDArray[np.int64] | None = None

    def rows(self, min_score: float) -> list[dict[str, Any]]:
        """Return the objects with at least this score, or the regions by falling share of the pixels."""
        if self.objects:
            return [
                {
                    "label": self.class_names[self.objects.labels[row]],
                    "score": float(self.objects.scores[row]),
                    **dict(zip(("left", "top", "right", "bottom"), self.objects.boxes[row].tolist(), strict=True)),
                }
                for row in np.flatnonzero(self.objects.scores >= min_score).tolist()
            ]
        assert self.labels is not None
        count = len(self.class_names)
        shares = np.bincount(self.labels[self.labels >= 0], minlength=count) / self.labels.size
        order = np.argsort(-shares, kind="stable").tolist()
        return [{"label": self.class_names[one], "share": float(shares[one])} for one in order if shares[one]]

    def drawn(self, image: Image.Image, min_score: float) -> Image.Image:
        """Return the image with boxes and masks, or tinted by class."""
        if not self.objects:
            assert self.labels is not None
            return overlay(image, self.labels, palette(max(2, len(self.class_names))))
        kept = np.flatnonzero(self.objects.scores >= min_score)
        masks = None if self.objects.masks is None else self.objects.masks[kept]
        counts = [None] * len(kept) if masks is None else [encode_mask(mask) for mask in masks]
        found = self.objects
        return draw_objects(
            image, found.labels[kept], found.boxes[kept], counts, list(self.class_names), found.scores[kept]
        )


def find(checkpoint: DenseCheckpoint, images: Sequence[Image.Image], device: torch.device) -> Iterator[DensePrediction]:
    """Yield what a model finds in each image."""
    predictor, names = load_predictor(checkpoint, device), checkpoint.class_names
    for image in images:
        if "boxes" in checkpoint.tasks:
            yield DensePrediction(names, objects=predictor.detect([image])[0])
        else:
            yield DensePrediction(names, labels=_label_map(checkpoint, predictor, image))


def find_regions(
    checkpoint: DenseCheckpoint,
    images: Sequence[Image.Image],
    names: list[str],
    device: torch.device,
    min_score: float,
) -> Regions:
    """Return what a model finds in images, which have these names."""
    found = list(find(checkpoint, images, device))
    rows = [{"image": name, **row} for name, one in zip(names, found, strict=True) for row in one.rows(min_score)]
    return Regions(names, rows, [one.objects or one.labels for one in found])


def _label_map(checkpoint: DenseCheckpoint, predictor: Any, image: Image.Image) -> NDArray[np.int64]:
    if "semantic" in checkpoint.tasks:
        labels: NDArray[np.int64] = predict_labels(image, predictor.crop_logits, checkpoint.image_size)
        return labels
    (panoptic,) = predictor.segment_all([image])
    classes: NDArray[np.int64] = np.append(panoptic.labels, -1)[panoptic.segments]
    return classes
