"""A linear layer on frozen patch tokens that predicts the class of each pixel, trained at random points.

The head is batch norm and a 1x1 convolution, and its scores are interpolated between patches. Each training step
computes the loss at random points in the full resolution of the labels, so that large images do not cost more. Source
of the head: Oquab et al. 2023, DINOv2 (arXiv:2304.07193), section 7.4.
"""

# B batch, D width, K classes, P points, h and w rows and columns of patches, H and W height and width of an image

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

NUM_POINTS = 1024  # pixels of an image in a batch


class PatchHead(nn.Module):
    """Batch norm without affine parameters, then a 1x1 convolution with weights of std 0.01."""

    def __init__(self, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.classify = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the scores of the classes, (B, D, h, w) to (B, K, h, w)."""
        scores: Tensor = self.classify(self.norm(maps))
        return scores


@dataclass(frozen=True)
class HeadTraining:
    """Training settings of a head.

    It is trained by AdamW, with warm-up over a tenth of the steps, then half a cosine to 0.
    """

    steps: int
    batch_size: int
    weight_decay: float
    seed: int = 0
    num_points: int = NUM_POINTS


def train_head(
    maps: Tensor,
    labels: Sequence[NDArray[np.integer]],
    rows: NDArray[np.int64],
    num_classes: int,
    lr: float,
    training: HeadTraining,
    device: torch.device,
) -> PatchHead:
    """Train a head on some of the images. The result depends only on the arguments.

    Args:
        maps: Features of all images, (N, D, h, w), in memory or mapped from a file.
        labels: Class of each pixel of each image, (H, W) of any size. Negative labels are ignored.
        rows: Images to train on.
        num_classes: Number of classes, K.
        lr: Peak learning rate.
        training: Steps and batches.
        device: Device that the head is trained on.
    """
    head = PatchHead(maps.shape[1], num_classes, torch.Generator().manual_seed(training.seed)).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=training.weight_decay)
    generator = np.random.default_rng(training.seed)
    order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    warmup = max(1, training.steps // 10)
    for step in range(training.steps):
        if len(order) < min(training.batch_size, len(rows)):  # the rest of an epoch is too small for a batch
            order = generator.permutation(rows)
        batch = order[: training.batch_size]
        order = order[training.batch_size :]
        points = generator.random((len(batch), training.num_points, 2), dtype=np.float32)
        loss = point_loss(head(_rows(maps, batch, device)), [labels[row] for row in batch.tolist()], points)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        done = (step - warmup) / max(1, training.steps - warmup)
        if step < warmup:
            factor = (step + 1) / warmup
        else:
            factor = 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.step()
    return head.eval()


def point_loss(scores: Tensor, labels: Sequence[NDArray[np.integer]], points: NDArray[np.float32]) -> Tensor:
    """Compute the mean cross-entropy at points of the images.

    Args:
        scores: (B, K, h, w).
        labels: Class of each pixel, (H, W) each.
        points: x and y as fractions of the sides, in [0, 1), (B, P, 2).
    """
    grid = torch.from_numpy(2 * points - 1).to(scores.device)[:, :, None]  # (B, P, 1, 2)
    at_points = F.grid_sample(scores, grid, mode="bilinear", padding_mode="border", align_corners=False)[..., 0]
    at_labels = []
    for label_map, points_of_image in zip(labels, points, strict=True):
        x, y = points_of_image[:, 0], points_of_image[:, 1]
        at_labels.append(label_map[(y * label_map.shape[0]).astype(int), (x * label_map.shape[1]).astype(int)])
    targets = torch.from_numpy(np.stack(at_labels).astype(np.int64)).to(scores.device)
    total = F.cross_entropy(at_points, targets.clamp(min=-1), ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


@torch.inference_mode()
def predict_map(
    head: nn.Module, maps: Tensor, row: int, size: tuple[int, int], device: torch.device
) -> NDArray[np.int64]:
    """Predict the class of each pixel of an image of `size` (H, W)."""
    # Channels last, since resizing and argmax then take less than half of the time with 133 classes.
    scores = head(_rows(maps, np.array([row]), device)).contiguous(memory_format=torch.channels_last)
    full = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    predicted: NDArray[np.int64] = full.argmax(dim=1)[0].cpu().numpy()
    return predicted


def _rows(maps: Tensor, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    order = np.argsort(rows)  # sorted, for reads from a file
    sorted_maps = maps[torch.from_numpy(rows[order])].float()
    return sorted_maps[torch.from_numpy(np.argsort(order))].to(device)
