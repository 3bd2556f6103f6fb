"""Attentive probe: one query's cross-attention over the frozen patch tokens of an image, then a linear layer.

After masked pre-training much of the information is in the patches rather than in the pooled feature, where a linear
probe misses it. Source: Chen et al. 2022, Context autoencoder (arXiv:2202.03026), section 4, attentive probing.
"""

# B batch, N images, T patch tokens, D width, H heads, C classes

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.config import UserError
from vfm.eval.finite import check_finite
from vfm.models import ClipModel, patch_features

GIB = 1 << 30


class AttentiveHead(nn.Module):
    """Cross-attention of a learned query over tokens, then a linear layer; tokens get a layer norm without parameters.

    Args:
        width: of the tokens, D.
        num_classes: C.
        generator: of the initial weights.
        num_heads: H, reduced until it divides the width; default: one per 64 channels.
    """

    def __init__(
        self, width: int, num_classes: int, generator: torch.Generator, *, num_heads: int | None = None
    ) -> None:
        super().__init__()
        most = num_heads or max(1, width // 64)
        self.num_heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
        self.query = nn.Parameter(torch.empty(width))
        self.keys, self.values = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.out, self.linear = nn.Linear(width, width), nn.Linear(width, num_classes)
        nn.init.normal_(self.query, std=0.02, generator=generator)
        for layer in (self.keys, self.values, self.out):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        for biased in (self.values, self.out, self.linear):
            nn.init.zeros_(biased.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the score of each class, (B, T, D) to (B, C)."""
        x = F.layer_norm(tokens, tokens.shape[-1:])
        query = self.query.view(1, self.num_heads, 1, -1).expand(len(x), -1, -1, -1)  # (B, H, 1, D / H)
        keys, values = (self._heads(layer(x)) for layer in (self.keys, self.values))
        seen = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(1)  # (B, D)
        scores: Tensor = self.linear(self.out(seen))
        return scores

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, H, T, D / H)


class TokenFile:
    """An encoder that writes the patch tokens of all images to a file, fp16, in the order of the images.

    The tokens are read back as a memory map, so memory does not grow with the data.

    Args:
        encoder: a `ClipModel` or `PooledVision`.
        file: is overwritten.
        max_bytes: its largest size.
    """

    def __init__(self, encoder: Any, file: Path, max_bytes: int) -> None:
        self.encoder, self.file, self.max_bytes = encoder, file, max_bytes
        self.shape: tuple[int, ...] = ()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Append the tokens of images to the file, and return empty features, (N, 0).

        Raises:
            UserError: the file would exceed `max_bytes`.
        """
        with self.file.open("ab") as stream:
            for start in range(0, len(images), batch_size):
                tokens = patch_tokens(self.encoder, images[start : start + batch_size])
                self.shape = tuple(tokens.shape[1:])
                if stream.tell() + tokens.numel() * 2 > self.max_bytes:
                    raise UserError(
                        f"patch tokens of {self.shape[0]} x {self.shape[1]} per image need more than"
                        f" {self.max_bytes / GIB:g} GiB; raise max_cache_gib, or evaluate on fewer images"
                    )
                stored = tokens.half().cpu()
                check_finite(
                    stored, "patch tokens in half precision", [f"image {start + i}" for i in range(len(stored))]
                )
                stream.write(stored.numpy().tobytes())
        return torch.zeros(len(images), 0)

    def tokens(self) -> Tensor:
        """Return the tokens of all images, (N, T, D) fp16, mapped from the file."""
        return torch.from_numpy(np.memmap(self.file, np.float16, mode="r+").reshape(-1, *self.shape))


@torch.inference_mode()
def patch_tokens(encoder: Any, images: Sequence[Image.Image]) -> Tensor:
    """Return patch tokens after the last block and the final norm, (N, T, D), of a `ClipModel` or `PooledVision`.

    Raises:
        UserError: the encoder has no patch tokens.
    """
    device = next(encoder.module.parameters()).device
    pixels = encoder.preprocess.inputs(images, device)
    return patch_features(encoder if isinstance(encoder, ClipModel) else encoder.module, pixels, projected=False)
