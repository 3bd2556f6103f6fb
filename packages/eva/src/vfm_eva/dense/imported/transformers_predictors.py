"""Predict with a model in transformers' layout, for evaluations and `vfm predict`."""

# B crops, S side of a crop, K classes, Q queries, H and W height and width of an image

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.eval import DenseTask, Instances, PanopticMap
from vfm.plugin import DenseCheckpoint
from vfm_eva.dense.augment import boxes_of
from vfm_eva.dense.imported.transformers_models import MODEL_FOLDER, ClassRecord, auto_class
from vfm_eva.dense.segment.post import best_objects, maskness, panoptic_map, semantic_scores

SCORE, OVERLAP = 0.8, 0.8  # of a panoptic segment, as in Mask2Former and EoMT


class TransformersPredictor:
    """A model of transformers in evaluation mode, as a predictor for its tasks.

    Images are prepared by the model's own processor. Queries become maps and objects by the rules of `post`, at the
    full size of the image, while transformers' processor of Mask2Former reduces all masks to 384 pixels.
    """

    def __init__(self, model: Any, processor: Any, record: ClassRecord, checkpoint: DenseCheckpoint) -> None:
        self.model = model
        self.processor = processor
        self.record = record
        self.tasks: list[DenseTask] = list(checkpoint.tasks)
        self.image_size = checkpoint.image_size
        labels = np.array(record.labels, dtype=np.int64)
        self.labels = labels
        # The rows of the model's classes, by label.
        self.rows = [np.flatnonzero(labels == label).tolist() for label in range(len(checkpoint.class_names))]

    @torch.no_grad()
    def crop_logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute class scores for square crops, (B, S, S, 3) to (B, K, h, w)."""
        outputs = self.model(pixel_values=self._normalized(crops))
        if self.record.family == "UniversalSegmentation":
            masks = outputs.masks_queries_logits.float()
            scores = semantic_scores(outputs.class_queries_logits.float(), masks)
        else:
            scores = outputs.logits.float()
        array: NDArray[np.float32] = _by_label(scores, self.rows).cpu().numpy()
        return array

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image]) -> list[Instances]:
        """Detect the objects of each image, best first."""
        if self.record.family == "ObjectDetection":
            return list(map(self._boxes, images))
        return list(map(self._masks, images))

    @torch.no_grad()
    def segment_all(self, images: Sequence[Image.Image]) -> list[PanopticMap]:
        """Compute the panoptic map of each image."""
        maps = []
        for image in images:
            classes, masks = self._queries(image)
            segments, labels = panoptic_map(
                classes, masks, self.record.things, score_threshold=SCORE, overlap_threshold=OVERLAP
            )
            maps.append(PanopticMap(segments.cpu().numpy().astype(np.int64), labels.numpy()))
        return maps

    def _boxes(self, image: Image.Image) -> Instances:
        inputs = self.processor(images=[image], return_tensors="pt").to(self.model.device)
        sizes = [(image.height, image.width)]
        (found,) = self.processor.post_process_object_detection(self.model(**inputs), threshold=0.0, target_sizes=sizes)
        order = found["scores"].argsort(descending=True, stable=True).cpu().numpy()
        labels = self.labels[found["labels"].cpu().numpy()[order]]
        boxes = found["boxes"].double().cpu().numpy()[order].clip(0, (image.width, image.height) * 2)
        known = labels >= 0
        return Instances(labels[known], found["scores"].double().cpu().numpy()[order][known], boxes[known])

    def _masks(self, image: Image.Image) -> Instances:
        classes, masks = self._queries(image)
        best = best_objects(classes, self.record.things)
        scores = best.scores * maskness(masks[best.queries])
        inside = (masks[best.queries] > 0).cpu().numpy()
        known = np.flatnonzero(inside.any(axis=(1, 2)))  # drop empty masks
        labels = best.labels.cpu().numpy()[known]
        return Instances(labels, scores.double().cpu().numpy()[known], boxes_of(inside[known]), inside[known])

    @torch.no_grad()
    def _queries(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Predict the class scores by label, (Q, K + 1), and the masks, (Q, H, W), of an image's queries."""
        pixels = self.processor(images=[image], return_tensors="pt")["pixel_values"].to(self.model.device)
        outputs = self.model(pixel_values=pixels)
        masks = F.interpolate(
            outputs.masks_queries_logits.float(), size=pixels.shape[-2:], mode="bilinear", align_corners=False
        )
        size = (image.height, image.width)
        if hasattr(self.processor, "unpad_image"):  # EoMT's images are padded to a square
            full = self.processor.unpad_image(masks, [size], dict(self.processor.size))[0]
        else:
            full = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[0]
        classes = outputs.class_queries_logits[0].float()
        # Of a class that the data lack, a query is none of theirs.
        left_out = np.flatnonzero(self.labels < 0).tolist()
        none = classes[:, [*left_out, -1]].logsumexp(dim=1, keepdim=True)
        return torch.cat([_by_label(classes, self.rows), none], dim=1), full

    def _normalized(self, crops: NDArray[np.uint8]) -> Tensor:
        pixels = torch.tensor(crops).permute(0, 3, 1, 2).float()
        pixels = pixels * getattr(self.processor, "rescale_factor", 1 / 255)
        if getattr(self.processor, "do_normalize", True):
            mean = torch.tensor(self._statistics[0])[:, None, None]
            std = torch.tensor(self._statistics[1])[:, None, None]
            pixels = (pixels - mean) / std
        return pixels.to(self.model.device)

    @property
    def _statistics(self) -> tuple[list[float], list[float]]:
        return list(self.processor.image_mean), list(self.processor.image_std)


def load_model(checkpoint: DenseCheckpoint, device: torch.device) -> TransformersPredictor:
    """Load an imported model from its folder."""
    record = ClassRecord.read(checkpoint)
    folder = checkpoint.path / MODEL_FOLDER
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = auto_class(record.family).from_pretrained(folder, use_safetensors=True)
    return TransformersPredictor(model.eval().to(device), processor, record, checkpoint)


def _by_label(scores: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Take the scores of each label from the model's classes, (B, C, ...) to (B, K, ...)."""
    return torch.cat([_largest(scores, of_label) for of_label in rows], dim=1)


def _largest(scores: Tensor, rows: Sequence[int]) -> Tensor:
    """Take the largest score of some classes, (B, C, ...) to (B, 1, ...); the lowest number if there are none."""
    if rows:
        return scores[:, list(rows)].amax(dim=1, keepdim=True)
    return torch.full_like(scores[:, :1], torch.finfo(scores.dtype).min)
