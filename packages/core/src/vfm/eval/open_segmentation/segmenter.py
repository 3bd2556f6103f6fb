"""A CLIP model that scores the words of a vocabulary at each pixel of an image, with several rules at once."""

# B windows, W words, R rules, E width of the joint space, (H, W) size of an image

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.sliding_windows import WindowMean, pad_to_window, window_places
from vfm.eval.open_segmentation.pamr import refine_scores
from vfm.eval.open_segmentation.rules import Rule
from vfm.models import ClipModel, eval_mode
from vfm.models.vision.last_block import LastBlockReader


@dataclass(frozen=True)
class SlidingWindowSettings:
    """How images are resized and cut into windows.

    Attributes:
        short_side: Shorter side of the resized images in pixels.
        side: Side of the windows in pixels. Default: the whole image at once.
        stride: Step between windows, as a fraction of their side.
        batch_size: Number of windows per forward pass.
        refine: Whether to smooth the scores along edges.
    """

    short_side: int
    side: int | None
    stride: float
    batch_size: int = 8
    refine: bool = False


@dataclass(frozen=True)
class ImageWindows:
    """The windows of an image. The image may have been padded.

    Attributes:
        size: Height and width of the image without padding.
        corners: Top and left of each window.
        crops: The windows, (B, height, width, 3).
    """

    size: tuple[int, int]
    corners: list[tuple[int, int]]
    crops: NDArray[np.uint8]

    def merged(self, parts: Sequence[Tensor]) -> Tensor:
        """Average the scores of the windows that cover a pixel, (W, height, width).

        Args:
            parts: Scores of the windows in their order, in batches, (B, W, rows, columns) each.
        """
        height, width = self.crops.shape[1:3]
        if len(self.corners) == 1:  # a single window may have any shape, `WindowMean` needs squares
            enlarged = F.interpolate(parts[0], size=(height, width), mode="bilinear", align_corners=False)[0]
            return enlarged[:, : self.size[0], : self.size[1]]
        mean = WindowMean((max(height, self.size[0]), max(width, self.size[1])), height)
        start = 0
        for part in parts:
            mean.add(self.corners[start : start + len(part)], part)
            start += len(part)
        return mean.scores()[:, : self.size[0], : self.size[1]]


@dataclass(frozen=True)
class Segmenter:
    """One model with its words and rules.

    Attributes:
        classifier: Unit vectors of the words, (W, E), on the model's device.
        name: Name of the model, for errors.
    """

    model: ClipModel
    reader: LastBlockReader
    classifier: Tensor
    rules: Mapping[str, Rule]
    windows: SlidingWindowSettings
    name: str

    def grid(self, image: Image.Image) -> tuple[int, int]:
        """Compute rows and columns of the patches that cover an image."""
        factor = self.windows.short_side / min(image.size)
        patch_height, patch_width = self.reader.tower.patch_size
        # Round up, since a partial patch is padded.
        rows = -(-round(factor * image.height) // patch_height)
        columns = -(-round(factor * image.width) // patch_width)
        return max(1, rows), max(1, columns)

    def cosines(self, image: Image.Image, key: str) -> Iterator[tuple[str, Tensor]]:
        """Yield each rule with the cosine of each word and pixel, (W, height, width).

        The model runs once for all rules. Pixels are computed rule by rule, since the scores of all rules may not fit
        in memory.

        Args:
            image: Image of any size.
            key: Key of the image, for errors.

        Raises:
            UserError: If an output is not finite, or the model cannot take windows of this size.
        """
        windows = self._cut(resized(image, self.windows.short_side))
        parts_by_rule: defaultdict[str, list[Tensor]] = defaultdict(list)
        batch_size = self.windows.batch_size
        for start in range(0, len(windows.crops), batch_size):
            for name, cosines in self.window_cosines(windows.crops[start : start + batch_size]).items():
                check_finite(cosines, f"{self.name}, {name}", [key] * len(cosines))
                parts_by_rule[name].append(cosines)
        for name, parts in parts_by_rule.items():
            scores = windows.merged(parts)[None]
            size = (image.height, image.width)
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
            if self.windows.refine:
                pixels = torch.from_numpy(np.array(image)).to(scores).permute(2, 0, 1)
                scores = refine_scores(scores, pixels)
            yield name, scores

    def window_cosines(self, crops: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Compute by rule the cosine of each patch and word, (B, W, rows, columns), in crops (B, height, width, 3)."""
        with eval_mode(self.model.module), torch.no_grad():
            pixels = self.model.pixels(torch.from_numpy(crops).to(self.model.device))
            block = self.reader.read(pixels)
            cosines = {}
            for name, rule in self.rules.items():
                features = F.normalize(self.reader.embed(rule(block, crops)).float(), dim=-1)
                cosines[name] = (features @ self.classifier.T).permute(0, 3, 1, 2)
        return cosines

    def _cut(self, pixels: NDArray[np.uint8]) -> ImageWindows:
        side = self.windows.side
        size = (pixels.shape[0], pixels.shape[1])
        if side is None:
            mean = tuple(round(255 * channel) for channel in self.model.preprocess.mean)
            padded = padded_to_patches(pixels, self.reader.tower.patch_size, mean)
            return ImageWindows(size, [(0, 0)], padded[None])
        padded = pad_to_window(pixels, side)
        corners = window_places(padded.shape[:2], side, max(1, round(self.windows.stride * side)))
        crops = np.stack([padded[top : top + side, left : left + side] for top, left in corners])
        return ImageWindows(size, corners, crops)


def resized(image: Image.Image, short_side: int) -> NDArray[np.uint8]:
    """Resize an image to a given shorter side with bilinear interpolation, and return its pixels, (H, W, 3)."""
    factor = short_side / min(image.size)
    if factor == 1:
        return np.asarray(image)
    size = (max(1, round(factor * image.width)), max(1, round(factor * image.height)))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def padded_to_patches(
    pixels: NDArray[np.uint8], patch_size: tuple[int, int], colour: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Pad pixels below and to the right to sides that are multiples of the patch.

    Without padding, the patch convolution would cut off the rest, and the map of the other pixels would be stretched
    over the whole image.

    Args:
        pixels: (H, W, 3).
        patch_size: Height and width of a patch.
        colour: Colour of the padding.
    """
    height = patch_size[0] * -(-pixels.shape[0] // patch_size[0])
    width = patch_size[1] * -(-pixels.shape[1] // patch_size[1])
    padded = np.broadcast_to(np.array(colour, dtype=np.uint8), (height, width, 3)).copy()
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded
