"""A trained detector as evaluations and `vfm predict` call it."""

# B images, N detections of an image, M side of a predicted mask, H and W height and width of an image

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.eval import DenseTask, Instances
from vfm.models import vision_preprocess
from vfm.plugin import DenseCheckpoint
from vfm_eva.dense.augment import Placement, place_picture, whole
from vfm_eva.dense.detect.cascade import Found
from vfm_eva.dense.detect.checkpoint import predicted, read_detector
from vfm_eva.dense.detect.model import Detector

INSIDE = 0.5  # probability from which a pixel belongs to a mask


class DetectPredictor:
    """A detector in evaluation mode, as an `ObjectPredictor`."""

    def __init__(self, model: Detector) -> None:
        self.model, self.preprocess = model, vision_preprocess(model.encoder.visual)

    @property
    def tasks(self) -> list[DenseTask]:
        """What it predicts."""
        return predicted(self.model.settings)

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.model.settings.image_size

    @torch.no_grad()  # in inference mode a model in training would keep tensors that its next step cannot use
    def detect(self, images: Sequence[Image.Image]) -> list[Instances]:
        """Return the objects of each image, best first."""
        placements = [whole(image.size, self.image_size) for image in images]
        crops = [place_picture(image, at) for image, at in zip(images, placements, strict=True)]
        device = next(self.model.parameters()).device
        pixels = self.preprocess.pixels(torch.stack(crops).to(device))
        sizes = [(at.covered[1], at.covered[0]) for at in placements]
        for one, (height, width) in zip(pixels, sizes, strict=True):
            one[:, height:], one[:, :, width:] = 0.0, 0.0  # padding has the mean colour
        return [_instances(*one) for one in zip(self.model.detect(pixels, sizes), placements, strict=True)]


def load_detector(checkpoint: DenseCheckpoint, device: torch.device) -> DetectPredictor:
    """Load a detector from its folder."""
    return DetectPredictor(read_detector(checkpoint).to(device))


def _instances(found: Found, placement: Placement) -> Instances:
    """Return detections in the pixels of the whole image."""
    width, height = placement.source
    boxes = found.boxes.cpu().double().numpy() / (placement.scale * 2)
    boxes = np.clip(boxes, 0, (width, height, width, height))
    masks = maskness = None
    if found.masks is not None:
        probabilities = found.masks.cpu()
        masks, maskness = paste(probabilities, boxes, height, width), mean_inside(probabilities)
    return Instances(found.labels.cpu().numpy(), found.scores.cpu().double().numpy(), boxes, masks, maskness)


def paste(masks: Tensor, boxes: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Return masks in the image, (N, H, W): each is interpolated within its box, (N, M, M) and (N, 4).

    Pixels are sampled at their centres, as in detectron2.
    """
    found = np.zeros((len(masks), height, width), dtype=bool)
    for out, mask, (left, top, right, bottom) in zip(found, masks, boxes.tolist(), strict=True):
        x = torch.arange(max(0, int(left)), min(width, int(right) + 1))
        y = torch.arange(max(0, int(top)), min(height, int(bottom) + 1))
        across = (x + 0.5 - left) / (right - left) * 2 - 1
        down = (y + 0.5 - top) / (bottom - top) * 2 - 1
        grid = torch.stack([across.expand(len(y), -1), down[:, None].expand(-1, len(x))], dim=-1)
        inside = F.grid_sample(mask[None, None].float(), grid[None].float(), align_corners=False)[0, 0]
        out[y[0] : y[-1] + 1, x[0] : x[-1] + 1] = (inside >= INSIDE).numpy()
    return found


def mean_inside(masks: Tensor) -> NDArray[np.float64]:
    """Return the mean probability inside each mask, (N, M, M) to (N,); 0 for an empty one."""
    inside = masks > INSIDE
    total, count = (masks * inside).sum(dim=(1, 2)), inside.sum(dim=(1, 2))
    return (total / count.clamp(min=1)).double().numpy()
