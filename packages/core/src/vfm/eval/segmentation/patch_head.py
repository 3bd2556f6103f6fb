"""A linear layer on frozen patch tokens that predicts the class of each pixel, trained at random points.

The head is batch norm and a 1x1 convolution; its scores are interpolated between patches. The loss is a mean over
pixels, of which each step uses some, drawn anew, at the full resolution of the labels: a step costs no more for large
pictures. Source of the head: Oquab et al. 2023, DINOv2 (arXiv:2304.07193), section 7.4.
"""

# B batch, D width, K classes, P points, h and w rows and columns of patches, H and W height and width of a picture

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

NUM_POINTS = 1024


class PatchHead(nn.Module):
    """Batch norm without affine parameters, then a 1x1 convolution with weights of std 0.01."""

    def __init__(self, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.classify = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Return the scores of the classes, (B, D, h, w) to (B, K, h, w)."""
        scores: Tensor = self.classify(self.norm(maps))
        return scores


@dataclass(frozen=True)
class HeadTraining:
    """Training of a head: AdamW, warm-up over a tenth of the steps, then half a cosine to 0."""

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
    """Train a head on some of the images; the result depends only on the arguments.

    Args:
        maps: features of all images, (N, D, h, w), also a memory map of a file.
        labels: class of each pixel of each image, (H, W) of any size; negative ones are ignored.
        rows: images to train on.
        num_classes: K.
        lr: peak learning rate.
        training: steps and batches.
        device: where the head is trained.
    """
    head = PatchHead(maps.shape[1], num_classes, torch.Generator().manual_seed(training.seed)).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=training.weight_decay)
    generator = np.random.default_rng(training.seed)
    order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    warmup = max(1, training.steps // 10)
    for step in range(training.steps):
        if len(order) < min(training.batch_size, len(rows)):
            order = generator.permutation(rows)
        batch, order = order[: training.batch_size], order[training.batch_size :]
        points = generator.random((len(batch), training.num_points, 2), dtype=np.float32)
        loss = point_loss(head(_rows(maps, batch, device)), [labels[row] for row in batch.tolist()], points)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        done = (step - warmup) / max(1, training.steps - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.step()
    return head.eval()


def point_loss(scores: Tensor, labels: Sequence[NDArray[np.integer]], points: NDArray[np.float32]) -> Tensor:
    """Return the mean cross-entropy at points of the pictures.

    Args:
        scores: (B, K, h, w).
        labels: (H, W) each.
        points: x and y as fractions of the sides, in [0, 1), (B, P, 2).
    """
    grid = torch.from_numpy(2 * points - 1).to(scores.device)[:, :, None]  # (B, P, 1, 2)
    at_points = F.grid_sample(scores, grid, mode="bilinear", padding_mode="border", align_corners=False)[..., 0]
    found = [
        one[(y * one.shape[0]).astype(int), (x * one.shape[1]).astype(int)] for one, (x, y) in _pairs(labels, points)
    ]
    targets = torch.from_numpy(np.stack(found).astype(np.int64)).to(scores.device)
    total = F.cross_entropy(at_points, targets.clamp(min=-1), ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


@torch.inference_mode()
def predict_map(
    head: nn.Module, maps: Tensor, row: int, size: tuple[int, int], device: torch.device
) -> NDArray[np.int64]:
    """Return the class of each pixel of one image of `size` (H, W)."""
    # Channels last: with 133 classes both resizing and argmax take less than half of the time.
    scores = head(_rows(maps, np.array([row]), device)).contiguous(memory_format=torch.channels_last)
    full = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    predicted: NDArray[np.int64] = full.argmax(dim=1)[0].cpu().numpy()
    return predicted


def _rows(maps: Tensor, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    order = np.argsort(rows)  # sorted, for reads from a file
    found = maps[torch.from_numpy(rows[order])].float()
    return found[torch.from_numpy(np.argsort(order))].to(device)


def _pairs(
    labels: Sequence[NDArray[np.integer]], points: NDArray[np.float32]
) -> list[tuple[NDArray[np.integer], tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    return [(one, (part[:, 0], part[:, 1])) for one, part in zip(labels, points, strict=True)]
