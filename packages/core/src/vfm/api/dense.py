"""Detection and segmentation of images by a model with a dense head. Imports torch."""

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
    """Prediction of a model for one image.

    Attributes:
        class_names: Names of the labels.
        objects: Detected objects. A segmenter has None.
        labels: Class of each pixel, -1 for none, (H, W). A detector has None.
    """

    class_names: Sequence[str]
    objects: Instances | None = None
    labels: NDArray[np.int64] | None = None

    def rows(self, min_score: float) -> list[dict[str, Any]]:
        """List the objects with at least this score, or the regions by decreasing fraction of the pixels."""
        if self.objects:
            rows = []
            for number in np.flatnonzero(self.objects.scores >= min_score).tolist():
                box = dict(zip(("left", "top", "right", "bottom"), self.objects.boxes[number].tolist(), strict=True))
                label = self.class_names[self.objects.labels[number]]
                score = float(self.objects.scores[number])
                rows.append({"label": label, "score": score, **box})
            return rows
        assert self.labels is not None
        count = len(self.class_names)
        shares = np.bincount(self.labels[self.labels >= 0], minlength=count) / self.labels.size
        order = np.argsort(-shares, kind="stable").tolist()
        return [{"label": self.class_names[label], "share": float(shares[label])} for label in order if shares[label]]

    def drawn(self, image: Image.Image, min_score: float) -> Image.Image:
        """Draw boxes and masks on the image, or tint it by class."""
        if not self.objects:
            assert self.labels is not None
            return overlay(image, self.labels, palette(max(2, len(self.class_names))))
        chosen = np.flatnonzero(self.objects.scores >= min_score)
        masks = None if self.objects.masks is None else self.objects.masks[chosen]
        counts = [None] * len(chosen) if masks is None else list(map(encode_mask, masks))
        labels = self.objects.labels[chosen]
        boxes = self.objects.boxes[chosen]
        return draw_objects(image, labels, boxes, counts, list(self.class_names), self.objects.scores[chosen])


def find(checkpoint: DenseCheckpoint, images: Sequence[Image.Image], device: torch.device) -> Iterator[DensePrediction]:
    """Yield the prediction of a model for each image.

    Args:
        checkpoint: Detector or segmenter.
        images: Decoded images.
        device: Device to run on.
    """
    predictor = load_predictor(checkpoint, device)
    names = checkpoint.class_names
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
    """Predict the objects or regions of images.

    Args:
        checkpoint: Detector or segmenter.
        images: Decoded images.
        names: Names of the images.
        device: Device to run on.
        min_score: Least score of an object.
    """
    rows: list[dict[str, Any]] = []
    found = []
    for name, prediction in zip(names, find(checkpoint, images, device), strict=True):
        rows += [{"image": name, **row} for row in prediction.rows(min_score)]
        found.append(prediction.objects or prediction.labels)
    return Regions(names, rows, found)


def _label_map(checkpoint: DenseCheckpoint, predictor: Any, image: Image.Image) -> NDArray[np.int64]:
    if "semantic" in checkpoint.tasks:
        labels: NDArray[np.int64] = predict_labels(image, predictor.crop_logits, checkpoint.image_size)
        return labels
    (panoptic,) = predictor.segment_all([image])
    classes: NDArray[np.int64] = np.append(panoptic.labels, -1)[panoptic.segments]
    return classes
