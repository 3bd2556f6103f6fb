"""Predict with a trained segmenter, for evaluations and `vfm predict`."""

# B batch, S side of a crop, K classes, H and W height and width of an image

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.eval import DenseTask, Instances, PanopticMap
from vfm.models import GraphExport, random_images, vision_preprocess
from vfm.plugin import DenseCheckpoint
from vfm_eva.dense.augment import Placement, boxes_of, place_whole
from vfm_eva.dense.segment.maps import MapSegmenter
from vfm_eva.dense.segment.model import PREDICTED, HeadRecord, Segmenter, read_segmenter
from vfm_eva.dense.segment.post import best_objects, maskness, panoptic_map, semantic_scores
from vfm_eva.dense.segment.queries import QueryPredictions
from vfm_eva.dense.segment.stages import QueriesSegmentation


class SegmentPredictor:
    """A segmenter in evaluation mode, as a predictor for each of its tasks.

    It does not use inference mode: a model in training would keep tensors that its next step cannot use.
    """

    def __init__(self, model: Segmenter, record: HeadRecord) -> None:
        self.model = model
        self.record = record
        self.preprocess = vision_preprocess(model.encoder.visual)

    @property
    def tasks(self) -> list[DenseTask]:
        """Dense tasks of the segmenter."""
        return PREDICTED[self.record.task]

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.preprocess.image_size

    @torch.no_grad()
    def crop_logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute class scores for square crops, (B, S, S, 3) to (B, K, h, w)."""
        pixels = self._pixels(torch.tensor(crops))
        if isinstance(self.model, MapSegmenter):
            scores = self.model(pixels)[0]
        else:
            last = self.model(pixels)[-1]
            scores = semantic_scores(last.classes.float(), last.masks.float())
        array: NDArray[np.float32] = scores.float().cpu().numpy()
        return array

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image]) -> list[Instances]:
        """Detect the objects of each image, scored by class probability times mean probability inside the mask."""
        detections = []
        for image, placement, last in self._whole(images):
            best = best_objects(last.classes[0], self.record.things)
            masks = _full_size(last.masks[0, best.queries], placement, image)
            scores = best.scores * maskness(masks)
            inside = (masks > 0).cpu().numpy()
            rows = np.flatnonzero(inside.any(axis=(1, 2)))  # drop empty masks
            labels = best.labels.cpu().numpy()[rows]
            row_scores = scores.double().cpu().numpy()[rows]
            detections.append(Instances(labels, row_scores, boxes_of(inside[rows]), inside[rows]))
        return detections

    @torch.no_grad()
    def segment_all(self, images: Sequence[Image.Image]) -> list[PanopticMap]:
        """Compute the panoptic map of each image."""
        settings = self.record.settings
        assert isinstance(settings, QueriesSegmentation)
        panoptic_maps = []
        for image, placement, last in self._whole(images):
            segments, labels = panoptic_map(
                last.classes[0],
                _full_size(last.masks[0], placement, image),
                self.record.things,
                score_threshold=settings.score_threshold,
                overlap_threshold=settings.overlap_threshold,
            )
            panoptic_maps.append(PanopticMap(segments.cpu().numpy().astype(np.int64), labels.numpy()))
        return panoptic_maps

    def onnx_graph(self) -> GraphExport:
        """Build the graph for ONNX, from normalised images (B, 3, S, S) to the predictions.

        Queries predict classes (B, Q, K + 1), masks (B, Q, h, w), and scores of pixels (B, K, h, w); maps only scores.
        """
        names = ["scores"] if isinstance(self.model, MapSegmenter) else ["scores", "classes", "masks"]
        return GraphExport("segmenter", _Predictions(self.model), "pixels", names, random_images(self.image_size))

    def _whole(self, images: Sequence[Image.Image]) -> list[tuple[Image.Image, Placement, QueryPredictions]]:
        """Run the model on whole images, and return each image with its placement and its predictions."""
        crops, placements = place_whole(images, self.image_size)
        last = self.model(self._pixels(crops))[-1]
        predictions = []
        for n in range(len(images)):
            predictions.append(QueryPredictions(last.classes[n : n + 1].float(), last.masks[n : n + 1].float()))
        return list(zip(images, placements, predictions, strict=True))

    def _pixels(self, crops: Tensor) -> Tensor:
        return self.preprocess.pixels(crops.to(next(self.model.parameters()).device))


class _Predictions(nn.Module):
    """The last predictions of a segmenter."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Predict the scores of pixels, and from queries also their classes and masks."""
        last = self.model(pixels)[0 if isinstance(self.model, MapSegmenter) else -1]
        if isinstance(last, Tensor):
            return last.softmax(dim=1)
        return semantic_scores(last.classes, last.masks), last.classes.softmax(dim=-1), last.masks


def load_segmenter(checkpoint: DenseCheckpoint, device: torch.device) -> SegmentPredictor:
    """Load a segmenter from its folder."""
    model, record = read_segmenter(checkpoint)
    return SegmentPredictor(model.to(device), record)


def _full_size(masks: Tensor, placement: Placement, image: Image.Image) -> Tensor:
    """Resize mask scores from the model's square input to the image, (N, h, w) to (N, H, W)."""
    side = placement.side
    (width, height) = placement.covered
    square = F.interpolate(masks[None], size=(side, side), mode="bilinear", align_corners=False)
    # Without the padding, before the second resize could blur it into the image.
    part = square[..., :height, :width]
    size = (image.height, image.width)
    return F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0]
