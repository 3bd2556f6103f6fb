"""Size, resizing and normalisation of a model's images. They are saved with the model."""

# B batch, S side of the square image

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from vfm.base import Config, drop_none, keep_keys
from vfm.data.samples.images import FILTERS, Interpolation

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class FittedImage:
    """An image resized in a decoding thread before the model runs.

    It has uint8 (S, S, 3) for each preprocessing.
    """

    pixels: Mapping[Preprocess, NDArray[np.uint8]]


AnyImage = Image.Image | NDArray[np.uint8] | FittedImage


class Preprocess(Config):
    """Preprocessing from an image to a model's input. The defaults are OpenAI CLIP's."""

    image_size: int = Field(ge=1, description="side of the square input, in pixels")
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    std: Triple = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = Field(
        "shortest",
        description="side that becomes image_size: shortest (then cropped), longest (then padded), or both (squash)",
    )
    pad_color: tuple[int, int, int] = (0, 0, 0)
    crop_pct: float = Field(1.0, gt=0, le=1, description="fraction of the resized side that the centre crop keeps")

    def fit(self, image: AnyImage) -> NDArray[np.uint8]:
        """Resize and crop or pad an image to the model's size, as open_clip's and timm's evaluation transforms do.

        Args:
            image: A PIL image, uint8 (H, W, 3), or an image already fitted for this preprocessing.

        Returns:
            uint8 (S, S, 3).
        """
        if isinstance(image, FittedImage):
            return image.pixels[self]
        source = image
        if not isinstance(source, Image.Image):
            source = Image.fromarray(np.asarray(source))
        side = self.image_size
        if source.size == (side, side) and self.crop_pct == 1.0:
            return np.array(source.convert("RGB"))
        # Converted before resizing (open_clip: after), since the indices of a palette cannot be interpolated.
        resized = source.convert("RGB").resize(self._resized(*source.size), FILTERS[self.interpolation])
        canvas = Image.new("RGB", (side, side), self.pad_color)
        width, height = resized.size
        canvas.paste(resized, (_offset(side, width), _offset(side, height)))
        return np.array(canvas)

    def pixels(self, batch: NDArray[np.uint8] | Tensor) -> Tensor:
        """Normalise uint8 images of the model's size.

        Args:
            batch: uint8, (B, 3, S, S) or (B, S, S, 3).

        Returns:
            float32 (B, 3, S, S), on the batch's device.
        """
        images = torch.as_tensor(batch)
        if images.dtype != torch.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
            raise ValueError(
                f"expected uint8 images (B, 3, S, S) or (B, S, S, 3), got {images.dtype} {tuple(images.shape)}"
            )
        if images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        mean = _per_channel(self.mean, images.device)
        std = _per_channel(self.std, images.device)
        # In place, as a batch of pixels in fp32 is four times the images.
        return images.float().div_(255.0).sub_(mean).div_(std).contiguous()

    def inputs(self, images: Sequence[AnyImage], device: torch.device) -> Tensor:
        """Convert images of any size to the model's input, float32 (B, 3, S, S) on the device."""
        fitted = np.stack(list(map(self.fit, images)))
        return self.pixels(torch.from_numpy(fitted).to(device))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Compute width and height before the crop, rounded as in torchvision (shortest) and timm (longest)."""
        side = int(self.image_size / self.crop_pct)
        if self.resize_mode == "squash":
            return side, side
        if self.resize_mode == "longest":
            ratio = max(width, height) / side
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        short = min(width, height)
        return int(side * width / short), int(side * height / short)

    @classmethod
    def from_open_clip(cls, cfg: dict[str, Any], image_size: int) -> Preprocess:
        """Convert an open_clip `preprocess_cfg`. Missing keys get OpenAI CLIP's values."""
        known = drop_none(keep_keys(cfg, ("mean", "std", "interpolation", "resize_mode")))
        if known.get("interpolation") == "random":  # open_clip: bicubic, except in training
            known["interpolation"] = "bicubic"
        return cls(image_size=image_size, **known)

    @classmethod
    def from_timm(cls, cfg: dict[str, Any]) -> Preprocess:
        """Convert timm's data configuration (`timm.data.resolve_model_data_config`)."""
        interpolation: Interpolation = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
        return cls(
            image_size=cfg["input_size"][-1],
            mean=cfg["mean"],
            std=cfg["std"],
            interpolation=interpolation,
            resize_mode={"squash": "squash", "border": "longest"}.get(cfg["crop_mode"], "shortest"),
            pad_color=tuple(round(255 * value) for value in cfg["mean"]),
            crop_pct=cfg["crop_pct"],
        )


def _offset(side: int, length: int) -> int:
    """Compute where a resized side begins on the canvas.

    Half pixels are rounded as in the other libraries: torchvision rounds in a crop, timm floors in a pad.
    """
    if length > side:
        return -round((length - side) / 2.0)
    return (side - length) // 2


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """Build (C, 1, 1) on a device by fills.

    Fills can be captured in a CUDA graph. A copy from the host cannot.
    """
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
