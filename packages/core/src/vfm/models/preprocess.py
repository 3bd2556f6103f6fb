"""How a model wants its images: size, resize rule and statistics, as facts that are saved with it."""

# B batch, S side of the square image

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from vfm.config import Config
from vfm.data.images import FILTERS, Interpolation

Triple = tuple[float, float, float]


class Preprocess(Config):
    """The way from a picture to a model's input. Defaults are OpenAI CLIP's."""

    image_size: int = Field(ge=1, description="side of the square input, in pixels")
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    std: Triple = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = Field(
        "shortest", description="which side becomes image_size: shortest (the rest is cropped), longest (padded), both"
    )
    pad_color: tuple[int, int, int] = (0, 0, 0)
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized side that the centre crop keeps")

    def fit(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture at the model's size, uint8 (S, S, 3); equal to open_clip's and timm's evaluation transform.

        Converts to RGB before it resizes (open_clip does it after), since a palette cannot be interpolated.

        Args:
            image: a PIL image, or uint8 (H, W, 3).
        """
        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        side = self.image_size
        if picture.size == (side, side) and self.crop_pct == 1.0:
            return np.array(picture.convert("RGB"))
        resized = picture.convert("RGB").resize(self._resized(*picture.size), FILTERS[self.interpolation])
        canvas = Image.new("RGB", (side, side), self.pad_color)
        width, height = resized.size
        canvas.paste(resized, (_offset(side, width), _offset(side, height)))
        return np.array(canvas)

    def pixels(self, batch: NDArray[np.uint8] | Tensor) -> Tensor:
        """Normalised model input from uint8 images of the model's size.

        Args:
            batch: uint8, (B, 3, S, S) or (B, S, S, 3).

        Returns:
            float32 (B, 3, S, S), on the batch's device.
        """
        images = torch.as_tensor(batch)
        if images.dtype != torch.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
            raise ValueError(
                f"a uint8 batch (B, 3, S, S) or (B, S, S, 3) is wanted, not {images.dtype} {tuple(images.shape)}"
            )
        if images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        mean, std = (torch.tensor(value, device=images.device).view(3, 1, 1) for value in (self.mean, self.std))
        return images.float().div_(255.0).sub_(mean).div_(std).contiguous()

    def inputs(self, images: Sequence[Image.Image | NDArray[np.uint8]], device: torch.device) -> Tensor:
        """Pictures of any size as the model's input, float32 (B, 3, S, S) on the device."""
        return self.pixels(torch.from_numpy(np.stack([self.fit(image) for image in images])).to(device))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop, rounded as torchvision (shortest) and timm (longest) round."""
        side = int(self.image_size / self.crop_pct)
        if self.resize_mode == "squash":
            return side, side
        if self.resize_mode == "longest":
            ratio = max(width, height) / side
            return round(width / ratio), round(height / ratio)
        short = min(width, height)
        return int(side * width / short), int(side * height / short)

    @classmethod
    def from_open_clip(cls, cfg: dict[str, Any], image_size: int) -> Preprocess:
        """The facts of an open_clip `preprocess_cfg`; what it leaves out is OpenAI CLIP's."""
        known = {key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode") if cfg.get(key) is not None}
        if known.get("interpolation") == "random":  # open_clip reads it as bicubic where nothing is augmented
            known["interpolation"] = "bicubic"
        return cls(image_size=image_size, **known)

    @classmethod
    def from_timm(cls, cfg: dict[str, Any]) -> Preprocess:
        """The facts of timm's data configuration (`timm.data.resolve_model_data_config`)."""
        return cls(
            image_size=cfg["input_size"][-1],
            mean=cfg["mean"],
            std=cfg["std"],
            interpolation="bilinear" if cfg["interpolation"] == "bilinear" else "bicubic",
            resize_mode={"squash": "squash", "border": "longest"}.get(cfg["crop_mode"], "shortest"),
            pad_color=tuple(round(255 * value) for value in cfg["mean"]),
            crop_pct=cfg["crop_pct"],
        )


def _offset(side: int, length: int) -> int:
    """Where a resized side begins on the canvas. The peers round a half pixel one way for a crop, another for a pad."""
    return -round((length - side) / 2.0) if length > side else (side - length) // 2
