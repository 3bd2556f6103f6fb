"""A CLIP model that scores the words of a vocabulary at each pixel of a picture, by several rules at once."""

# B windows, W words, R rules, E width of the joint space, (H, W) a picture

from __future__ import annotations

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
class View:
    """How pictures are seen.

    short_side: pixels of the shorter side.
    window: side of the windows; None: each picture at once.
    stride: step of the windows, as a fraction of their side.
    batch_size: windows per forward pass.
    refine: smooth the scores along edges.
    """

    short_side: int
    window: int | None
    stride: float
    batch_size: int = 8
    refine: bool = False


@dataclass(frozen=True)
class Windows:
    """The windows of one picture, which may begin a padded one.

    size: height and width of the picture.
    places: top and left of each window.
    crops: the windows, (B, height, width, 3).
    """

    size: tuple[int, int]
    places: list[tuple[int, int]]
    crops: NDArray[np.uint8]

    def merged(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the mean score of the windows that cover a pixel, (W, height, width).

        Args:
            parts: scores of the windows in their order, in batches, (B, W, rows, columns) each.
        """
        height, width = self.crops.shape[1:3]
        if len(self.places) == 1:  # of any shape
            enlarged = F.interpolate(parts[0], size=(height, width), mode="bilinear", align_corners=False)[0]
            return enlarged[:, : self.size[0], : self.size[1]]
        mean, start = WindowMean((max(height, self.size[0]), max(width, self.size[1])), height), 0
        for part in parts:
            mean.add(self.places[start : start + len(part)], part)
            start += len(part)
        return mean.scores()[:, : self.size[0], : self.size[1]]


@dataclass(frozen=True)
class Segmenter:
    """One model with its words and rules.

    classifier: unit vectors of the words, (W, E), on the model's device.
    name: of the model, for errors.
    """

    model: ClipModel
    reader: LastBlockReader
    classifier: Tensor
    rules: Mapping[str, Rule]
    view: View
    name: str

    def grid(self, picture: Image.Image) -> tuple[int, int]:
        """Return rows and columns of the patches that cover a picture."""
        factor = self.view.short_side / min(picture.size)
        rows, columns = (
            max(1, -(-round(factor * side) // step))
            for side, step in zip((picture.height, picture.width), self.reader.tower.patch_size, strict=True)
        )
        return rows, columns

    def cosines(self, picture: Image.Image, key: str) -> Iterator[tuple[str, Tensor]]:
        """Yield each rule with the cosine of each word and pixel, (W, height, width).

        The model runs once for all rules; pixels are computed rule by rule, since those of all may not fit in memory.

        Args:
            picture: of any size.
            key: of the picture, for errors.

        Raises:
            UserError: an output is not finite, or the model cannot take windows of this size.
        """
        windows = self._windows(resized(picture, self.view.short_side))
        found: dict[str, list[Tensor]] = {name: [] for name in self.rules}
        for start in range(0, len(windows.crops), self.view.batch_size):
            for name, cosines in self.window_cosines(windows.crops[start : start + self.view.batch_size]).items():
                check_finite(cosines, f"{self.name}, {name}", [key] * len(cosines))
                found[name].append(cosines)
        for name, parts in found.items():
            scores = windows.merged(parts)[None]
            size = (picture.height, picture.width)
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
            if self.view.refine:
                scores = refine_scores(scores, torch.from_numpy(np.array(picture)).to(scores).permute(2, 0, 1))
            yield name, scores

    def window_cosines(self, crops: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Return by rule the cosine of each patch and word, (B, W, rows, columns), of crops (B, height, width, 3)."""
        with eval_mode(self.model.module), torch.no_grad():
            pixels = self.model.pixels(torch.from_numpy(crops).to(self.model.device))
            block = self.reader.read(pixels)
            found = {}
            for name, rule in self.rules.items():
                features = F.normalize(self.reader.embed(rule(block, crops)).float(), dim=-1)
                found[name] = (features @ self.classifier.T).permute(0, 3, 1, 2)
        return found

    def _windows(self, pixels: NDArray[np.uint8]) -> Windows:
        side, size = self.view.window, (pixels.shape[0], pixels.shape[1])
        if side is None:
            mean = tuple(round(255 * channel) for channel in self.model.preprocess.mean)
            padded = padded_to_patches(pixels, self.reader.tower.patch_size, mean)
            return Windows(size, [(0, 0)], padded[None])
        padded = pad_to_window(pixels, side)
        places = window_places(padded.shape[:2], side, max(1, round(self.view.stride * side)))
        return Windows(size, places, np.stack([padded[top : top + side, left : left + side] for top, left in places]))


def resized(picture: Image.Image, short_side: int) -> NDArray[np.uint8]:
    """Return a picture's pixels, (H, W, 3), with the shorter side as given (bilinear)."""
    factor = short_side / min(picture.size)
    if factor == 1:
        return np.asarray(picture)
    size = (max(1, round(factor * picture.width)), max(1, round(factor * picture.height)))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def padded_to_patches(
    pixels: NDArray[np.uint8], patch_size: tuple[int, int], colour: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Return pixels, (H, W, 3), with sides that are multiples of the patch; a colour is added below and to the right.

    A convolution would cut the rest off, and what it sees would be stretched over the picture.
    """
    height, width = (step * -(-side // step) for side, step in zip(pixels.shape[:2], patch_size, strict=True))
    padded = np.broadcast_to(np.array(colour, dtype=np.uint8), (height, width, 3)).copy()
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded
