"""Protocols of the encoders that evaluation and training share, and a timm model as an encoder."""

# B batch, N images, C classes, D width

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models.preprocess import Preprocess

EncoderPrecision = Literal["fp32", "bf16"]
"""Precision of an encoder's forward pass in evaluations. Weights and features are in fp32."""


def autocast_encoder(precision: EncoderPrecision, device: torch.device) -> torch.autocast:
    """Create the autocast context of an encoder's forward pass."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class ImageEncoder(Protocol):
    """A model that encodes each image as one vector."""

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Encode images to unit vectors, float32 (N, D) on the CPU."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    """A model that also encodes each text as one vector in the same space, such as `ClipModel`."""

    module: nn.Module

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts to unit vectors, float32 (N, D) on the CPU."""
        ...


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block, and restore the mode of every submodule after it."""
    training = [submodule for submodule in module.modules() if submodule.training]
    module.eval()
    try:
        yield
    finally:
        for submodule in training:
            submodule.training = True


@dataclass(frozen=True)
class PooledVision:
    """A timm model as an encoder, with its pooled features before the head and the logits of its head.

    Attributes:
        module: The timm model.
        preprocess: Resizing and normalisation of its input.
        features_key: Identifies its features in the feature cache (`vfm.eval`). Empty: features are not cached.
        precision: Precision of the forward pass.
    """

    module: nn.Module
    preprocess: Preprocess
    features_key: str = ""
    precision: EncoderPrecision = "fp32"

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Encode images to unit vectors, float32 (N, D) on the CPU."""

        def embed(pixels: Tensor) -> Tensor:
            tokens = self.module.forward_features(pixels)  # type: ignore[operator]
            pooled: Tensor = self.module.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
            return F.normalize(pooled.float(), dim=-1)

        return self._in_batches(images, batch_size, embed)

    def logits(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Compute the outputs of the model's head, float32 (N, C) on the CPU."""
        return self._in_batches(images, batch_size, lambda pixels: self.module(pixels).float())

    def _in_batches(
        self, images: Sequence[Image.Image], batch_size: int, forward: Callable[[Tensor], Tensor]
    ) -> Tensor:
        device = next(self.module.parameters()).device
        parts = []
        with eval_mode(self.module), torch.inference_mode(), autocast_encoder(self.precision, device):
            for start in range(0, len(images), batch_size):
                pixels = self.preprocess.inputs(images[start : start + batch_size], device)  # (B, 3, H, W)
                parts.append(forward(pixels).cpu())
        # A copy outside inference mode: autograd refuses inference tensors, and probes train on these features.
        return torch.cat(parts).clone()
