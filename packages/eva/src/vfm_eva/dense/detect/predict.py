"""Predict with a trained detector, for evaluations and `vfm predict`."""

# B images, N detections of an image, M side of a predicted mask, H and W height and width of an image

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.eval import DenseTask, Instances
from vfm.models import GraphExport, random_images, vision_preprocess
from vfm.plugin import DenseCheckpoint
from vfm_eva.dense.augment import Placement, place_whole
from vfm_eva.dense.detect.checkpoint import predicted, read_detector
from vfm_eva.dense.detect.model import Detector
from vfm_eva.dense.detect.objects import DetectedObjects

INSIDE = 0.5  # probability from which a pixel belongs to a mask


class DetectPredictor:
    """A detector in evaluation mode, as an `ObjectPredictor`."""

    def __init__(self, model: Detector) -> None:
        self.model = model
        self.preprocess = vision_preprocess(model.encoder.visual)

    @property
    def tasks(self) -> list[DenseTask]:
        """Dense tasks of the detector. It predicts boxes, and masks if it has a mask head."""
        return predicted(self.model.settings)

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.model.settings.image_size

    @torch.no_grad()  # in inference mode a model in training would keep tensors that its next step cannot use
    def detect(self, images: Sequence[Image.Image]) -> list[Instances]:
        """Detect the objects of each image, best first."""
        crops, placements = place_whole(images, self.image_size)
        device = next(self.model.parameters()).device
        pixels = self.preprocess.pixels(crops.to(device))
        sizes = []
        for image_pixels, placement in zip(pixels, placements, strict=True):
            width, height = placement.covered
            sizes.append((height, width))
            # Padding has the mean colour.
            image_pixels[:, height:] = 0.0
            image_pixels[:, :, width:] = 0.0
        detections = self.model.detect(pixels, sizes)
        return list(map(_instances, detections, placements))

    def onnx_graph(self) -> GraphExport:
        """Build the graph for ONNX, from a normalised image (1, 3, S, S) to its detections, with suppression inside."""
        names = ["boxes", "scores", "labels", *(["masks"] if "masks" in self.tasks else [])]
        images = random_images(self.image_size)
        return GraphExport("detector", _Detections(self.model), "pixels", names, images, batched=False)


class _Detections(nn.Module):
    """The detections of one image, suppressed and sorted."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Detect boxes (N, 4) in pixels of the input, scores (N,), labels (N,), and masks (N, M, M) if it has them."""
        side = self.model.settings.image_size
        detected = self.model.detect(pixels, [(side, side)])[0]
        parts = (detected.boxes, detected.scores, detected.labels)
        return parts if detected.masks is None else (*parts, detected.masks)


def load_detector(checkpoint: DenseCheckpoint, device: torch.device) -> DetectPredictor:
    """Load a detector from its folder."""
    return DetectPredictor(read_detector(checkpoint).to(device))


def _instances(detected: DetectedObjects, placement: Placement) -> Instances:
    """Convert detections to pixels of the original image."""
    width, height = placement.source
    boxes = detected.boxes.cpu().double().numpy() / (placement.scale * 2)
    boxes = np.clip(boxes, 0, (width, height, width, height))
    masks = maskness = None
    if detected.masks is not None:
        probabilities = detected.masks.cpu()
        masks = paste(probabilities, boxes, height, width)
        maskness = mean_inside(probabilities)
    labels = detected.labels.cpu().numpy()
    scores = detected.scores.cpu().double().numpy()
    return Instances(labels, scores, boxes, masks, maskness)


def paste(masks: Tensor, boxes: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Paste masks into the image by interpolation within their boxes.

    Pixels are sampled at their centres, as in detectron2.

    Args:
        masks: (N, M, M).
        boxes: (N, 4).
        height: Height of the image.
        width: Width of the image.

    Returns:
        (N, height, width).
    """
    pasted = np.zeros((len(masks), height, width), dtype=bool)
    for out, mask, (left, top, right, bottom) in zip(pasted, masks, boxes.tolist(), strict=True):
        x = torch.arange(max(0, int(left)), min(width, int(right) + 1))
        y = torch.arange(max(0, int(top)), min(height, int(bottom) + 1))
        # Pixel centres in `grid_sample`'s coordinates, where -1 and 1 are the edges of the box.
        across = (x + 0.5 - left) / (right - left) * 2 - 1
        down = (y + 0.5 - top) / (bottom - top) * 2 - 1
        grid = torch.stack([across.expand(len(y), -1), down[:, None].expand(-1, len(x))], dim=-1)
        inside = F.grid_sample(mask[None, None].float(), grid[None].float(), align_corners=False)[0, 0]
        out[y[0] : y[-1] + 1, x[0] : x[-1] + 1] = (inside >= INSIDE).numpy()
    return pasted


def mean_inside(masks: Tensor) -> NDArray[np.float64]:
    """Compute the mean probability inside each mask, (N, M, M) to (N,), 0 for an empty mask."""
    inside = masks > INSIDE
    total = (masks * inside).sum(dim=(1, 2))
    count = inside.sum(dim=(1, 2))
    return (total / count.clamp(min=1)).double().numpy()
