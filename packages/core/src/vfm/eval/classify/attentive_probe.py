"""A probe with cross-attention of a query over the frozen patch tokens of an image, and a linear layer.

After masked pre-training much of the information is in the patches rather than in the pooled feature, where a linear
probe misses it. Source: Chen et al. 2022, Context autoencoder (arXiv:2202.03026), section 4, attentive probing.
"""

# B batch, N images, T patch tokens, D width, H heads, C classes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.models import ClipModel, patch_features

GIB = 1 << 30


class AttentiveHead(nn.Module):
    """Cross-attention of a learned query over tokens, then a linear layer.

    The tokens are normalised by a layer norm without parameters.

    Args:
        width: Width of the tokens, D.
        num_classes: Number of classes, C.
        generator: Random generator for the initial weights.
        num_heads: Number of heads, H, reduced until it divides the width. Default: one per 64 channels.
    """

    def __init__(
        self, width: int, num_classes: int, generator: torch.Generator, *, num_heads: int | None = None
    ) -> None:
        super().__init__()
        most = num_heads or max(1, width // 64)
        # Heads of 64 channels, as in the encoders, or the next number that divides the width.
        self.num_heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
        self.query = nn.Parameter(torch.empty(width))
        self.keys = nn.Linear(width, width, bias=False)
        self.values = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.linear = nn.Linear(width, num_classes)
        # As the tokens of vision transformers are drawn.
        nn.init.normal_(self.query, std=0.02, generator=generator)
        for layer in (self.keys, self.values, self.out):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        for biased in (self.values, self.out, self.linear):
            nn.init.zeros_(biased.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the score of each class, (B, T, D) to (B, C)."""
        # Tokens of different encoders differ in size, and learning rates are the same for all.
        x = F.layer_norm(tokens, tokens.shape[-1:])
        query = self.query.view(1, self.num_heads, 1, -1).expand(len(x), -1, -1, -1)  # (B, H, 1, D / H)
        keys = self._heads(self.keys(x))
        values = self._heads(self.values(x))
        attended = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(1)  # (B, D)
        scores: Tensor = self.linear(self.out(attended))
        return scores

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, H, T, D / H)


class PatchTokens:
    """An image encoder whose features are all patch tokens, in half precision.

    Args:
        encoder: A `ClipModel` or `PooledVision`.
        num_images: Number of images in the dataset.
        max_gib: Largest total size of their tokens, in GiB.
    """

    def __init__(self, encoder: Any, num_images: int, max_gib: float) -> None:
        self.encoder = encoder
        self.num_images = num_images
        self.max_gib = max_gib

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Encode images as tokens, fp16 (N, T, D) on the CPU.

        Raises:
            UserError: If the tokens of the whole dataset would need more than `max_gib`.
        """
        starts = range(0, len(images), batch_size)
        tokens = torch.cat([patch_tokens(self.encoder, images[start : start + batch_size]).half() for start in starts])
        # Checked with the first batch, before hours of encoding fill the disk.
        needed = tokens[0].numel() * tokens.element_size() * self.num_images / GIB
        if needed > self.max_gib:
            count, width = tokens.shape[1:]
            raise UserError(
                f"patch tokens of {self.num_images} images, {count} x {width} each, need {needed:.3g} GiB, more than"
                f" max_cache_gib {self.max_gib:g}; raise it, or evaluate on fewer images"
            )
        return tokens.cpu()


@torch.inference_mode()
def patch_tokens(encoder: Any, images: Sequence[Image.Image]) -> Tensor:
    """Compute patch tokens after the last block and the final norm, (N, T, D), of a `ClipModel` or `PooledVision`.

    Raises:
        UserError: If the encoder has no patch tokens.
    """
    device = next(encoder.module.parameters()).device
    pixels = encoder.preprocess.inputs(images, device)
    return patch_features(encoder if isinstance(encoder, ClipModel) else encoder.module, pixels, projected=False)
