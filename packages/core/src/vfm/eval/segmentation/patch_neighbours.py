"""Labels of pixels from the nearest patches of training images, without any training.

Source: Balažević et al. 2023, Towards in-context scene understanding (arXiv:2306.01667), section 3. The memory has
equally many patches of each image, with a preference for rare classes. The labels of the nearest patches are averaged
with a softmax of their cosines.
"""

# N images, M patches of the memory, D width, K classes, B batch, h and w rows and columns of patches, H and W of pixels

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.eval.classify.knn import knn_votes
from vfm.eval.dense.stages import PatchNeighbours


class PatchMemory(nn.Module):
    """Patches of training images with the classes of their pixels, used instead of a trained head.

    Args:
        features: (M, D).
        shares: Share of each class in a patch's labelled pixels, (M, K).
        k: Number of neighbours that are averaged.
        temperature: Temperature of the softmax of their cosines.
    """

    def __init__(self, features: Tensor, shares: Tensor, k: int, temperature: float) -> None:
        super().__init__()
        self.features = features
        self.shares = shares
        self.k = k
        self.temperature = temperature

    def forward(self, maps: Tensor) -> Tensor:
        """Average the class shares of each patch's neighbours, (B, D, h, w) to (B, K, h, w)."""
        batch, _, height, width = maps.shape
        votes = knn_votes(
            self.features,
            self.shares,
            maps.permute(0, 2, 3, 1).flatten(0, 2),
            num_classes=self.shares.shape[1],
            k=self.k,
            temperature=self.temperature,
        )
        shares = votes / votes.sum(dim=1, keepdim=True)
        return shares.view(batch, height, width, -1).permute(0, 3, 1, 2)


def remember_patches(
    maps: Tensor,
    labels: Sequence[NDArray[np.integer]],
    rows: NDArray[np.int64],
    num_classes: int,
    settings: PatchNeighbours,
    seed: int,
    device: torch.device,
) -> PatchMemory:
    """Build the memory from some of the images. The result depends only on the arguments.

    Args:
        maps: Features of all images, (N, D, h, w), in memory or mapped from a file.
        labels: Class of each pixel of each image, (H, W) of any size. Negative labels are ignored.
        rows: Images to store.
        num_classes: Number of classes, K.
        settings: Size of the memory, number and weights of neighbours.
        seed: Seed of the random choice if there are more patches than the memory holds.
        device: Device of the memory.
    """
    generator = np.random.default_rng(seed)
    of_image = max(1, settings.memory // len(rows))
    features = []
    shares = []
    for row in rows.tolist():
        known = patch_shares(labels[row], (maps.shape[2], maps.shape[3]), num_classes)
        chosen = np.flatnonzero(known.any(axis=1))
        if len(chosen) > of_image:
            # Patches of classes that are rare in the image are drawn more often.
            rarity = known[chosen] @ (1 / np.maximum(known.sum(axis=0), 1e-6))
            chosen = np.sort(generator.choice(chosen, of_image, replace=False, p=rarity / rarity.sum()))
        features.append(maps[row].flatten(1).T[torch.from_numpy(chosen)].float())
        shares.append(torch.from_numpy(known[chosen]).float())
    vectors = F.normalize(torch.cat(features), dim=1)
    return PatchMemory(vectors.to(device), torch.cat(shares).to(device), settings.k, settings.temperature)


def patch_shares(labels: NDArray[np.integer], grid: tuple[int, int], num_classes: int) -> NDArray[np.float64]:
    """Compute the share of each class in the labelled pixels of each patch, (h w, K), 0 in patches without labels.

    The image is cut into a grid in the same way as it is squashed to a square, so a pixel belongs to one patch.

    Args:
        labels: (H, W), negative for pixels without a label.
        grid: Rows and columns of patches, h and w.
        num_classes: Number of classes, K.
    """
    height, width = labels.shape
    y = np.arange(height) * grid[0] // height
    x = np.arange(width) * grid[1] // width
    patch = y[:, None] * grid[1] + x
    known = labels >= 0
    cells = patch[known] * num_classes + labels[known]
    counts = np.bincount(cells, minlength=grid[0] * grid[1] * num_classes).reshape(-1, num_classes)
    return np.asarray(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)), dtype=np.float64)
