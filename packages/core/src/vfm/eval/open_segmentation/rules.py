"""The rules of the last block, which compute one feature for each patch from parts of the block.

The features are before the final norm.

In the notation of the configuration's sources: x the tokens before the block, q, k, v its projections, P the output
projection, F(z) = z + MLP(norm(z)).

    rule            z               attention A
    clip            F(x + P(A v))   softmax(q k' / sqrt d)
    maskclip        F(x + P(v))     the identity
    maskclip_bare   P(v)            the identity
    sclip           F(x + P(A v))   softmax(q q' / sqrt d) + softmax(k k' / sqrt d): rows sum to 2
    clearclip       P(A v)          softmax(q q' / sqrt d)
    naclip          P(A v)          softmax(k k' / sqrt d + w), w a Gaussian of the distance of two patches
    proxyclip       P(A v)          of another encoder's patches: softmax(gamma (S - beta mean S)) over positive terms
"""

# B images, L tokens, N patches, D width, H heads of width d

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vfm.eval.open_segmentation.last_block_rules import LastBlockRule, NaClip, ProxyClip, Similarity
from vfm.interfaces import Ref
from vfm.models import ClipModel, vision_features, vision_tower
from vfm.models.vision.last_block import LastBlock

Load = Callable[[Ref[Any]], Any]
"""Loads the encoder of an input (`ClipModel` or `PooledVision`) in evaluation mode."""


class Rule(Protocol):
    """A function that computes patch features of images."""

    def __call__(self, block: LastBlock, crops: NDArray[np.uint8]) -> Tensor:
        """Compute the patches after the block, (B, rows, columns, D).

        Args:
            block: Inputs and projections of the last block for the images.
            crops: The images, (B, height, width, 3).
        """
        ...


def clip(part: LastBlockRule, load: Load) -> Rule:
    """Create the rule that leaves the block unchanged."""

    def rule(block: LastBlock, crops: NDArray[np.uint8]) -> Tensor:
        attention = _attention(block.rotate(block.queries), block.rotate(block.keys), block.scale)
        return _whole(block, attention @ block.values)

    return rule


def maskclip(part: LastBlockRule, load: Load) -> Rule:
    """Create the rule with which each token attends to itself."""
    return lambda block, crops: _whole(block, block.values)


def maskclip_bare(part: LastBlockRule, load: Load) -> Rule:
    """Create the rule that only projects the values."""
    return lambda block, crops: _bare(block, block.values)


def sclip(part: Similarity, load: Load) -> Rule:
    """Create the rule whose attention is the sum of the self-similarities of queries and of keys."""

    def rule(block: LastBlock, crops: NDArray[np.uint8]) -> Tensor:
        q, k = _similar(part, block, block.queries, block.keys)
        attention = _attention(q, q, block.scale) + _attention(k, k, block.scale)
        return _whole(block, attention @ block.values)

    return rule


def clearclip(part: Similarity, load: Load) -> Rule:
    """Create the rule with which queries attend to queries."""

    def rule(block: LastBlock, crops: NDArray[np.uint8]) -> Tensor:
        (q,) = _similar(part, block, block.queries)
        return _bare(block, _attention(q, q, block.scale) @ block.values)

    return rule


def naclip(part: NaClip, load: Load) -> Rule:
    """Create the rule with which keys attend to keys, with more weight on the neighbourhood."""

    def rule(block: LastBlock, crops: NDArray[np.uint8]) -> Tensor:
        (k,) = _similar(part, block, block.keys)
        bonus = neighbourhood(block.grid, part.sigma, block.num_prefix_tokens).to(k)
        return _bare(block, _attention(k, k, block.scale, bonus) @ block.values)

    return rule


def proxyclip(part: ProxyClip, load: Load) -> Rule:
    """Create the rule with attention between another encoder's patches. Features are on that encoder's grid."""
    encoder = load(part.encoder)
    model = encoder if isinstance(encoder, ClipModel) else encoder.module
    tower = vision_tower(model)

    def rule(block: LastBlock, crops: NDArray[np.uint8]) -> Tensor:
        (height, width), (patch_height, patch_width) = crops.shape[1:3], tower.patch_size
        size = _whole_patches(part.enlarge * height, patch_height), _whole_patches(part.enlarge * width, patch_width)
        pixels = encoder.preprocess.pixels(torch.from_numpy(crops).to(block.tokens.device))
        (tokens,) = vision_features(model, pixels, layers=[part.layer], size=size)
        attention = proxy_attention(tokens.patches, part.beta, part.gamma)[:, None]  # (B, 1, N, N)
        values = block.values[:, :, block.num_prefix_tokens :].transpose(2, 3)  # (B, H, d, N)
        maps = values.reshape(len(crops), -1, *block.grid)
        resized = F.interpolate(maps, size=tokens.grid, mode="bilinear", align_corners=False)
        heads = resized.reshape(*values.shape[:3], -1).transpose(2, 3)  # on the other grid
        return block.project(attention @ heads).reshape(len(crops), *tokens.grid, -1)

    return rule


def neighbourhood(grid: tuple[int, int], sigma: float, num_prefix_tokens: int = 0) -> Tensor:
    """Compute exp(-distance² / 2 sigma²) for every two patches, and 0 for prefix tokens, (L, L).

    Args:
        grid: Rows and columns of patches.
        sigma: Standard deviation, in patches.
        num_prefix_tokens: Number of prefix tokens of the tower.
    """
    positions = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(-1, 2).double()
    distance = (positions[:, None] - positions[None]).square().sum(dim=-1)
    bonus: Tensor = torch.exp(-distance / (2 * sigma**2))
    return F.pad(bonus, (num_prefix_tokens, 0, num_prefix_tokens, 0))


def proxy_attention(patches: Tensor, beta: float, gamma: float) -> Tensor:
    """Compute the attention between the patches of an encoder, (B, N, N).

    The mean is taken for each image, so that results do not depend on the rest of the batch. The published code takes
    the mean of the batch. A patch without a positive term attends to itself.

    Args:
        patches: Features, (B, N, D).
        beta: Factor of the mean.
        gamma: Factor of the difference.
    """
    unit = F.normalize(patches.float(), dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    scores = gamma * (similarity - beta * similarity.mean(dim=(1, 2), keepdim=True))
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill((scores < 0) & ~itself, -torch.inf).softmax(dim=-1)


def _whole_patches(side: float, patch: int) -> int:
    """Round a side in pixels to a multiple of the patch, at least one patch."""
    return int(patch * max(1, round(side / patch)))


def _attention(queries: Tensor, keys: Tensor, scale: float, bonus: Tensor | None = None) -> Tensor:
    scores = scale * queries @ keys.transpose(-2, -1)
    if bonus is not None:
        scores = scores + bonus
    return scores.softmax(dim=-1)


def _similar(part: Similarity, block: LastBlock, *heads: Tensor) -> list[Tensor]:
    return [block.rotate(vectors) if part.rope else vectors for vectors in heads]


def _whole(block: LastBlock, heads: Tensor) -> Tensor:
    return block.patch_maps(block.feed_forward(block.tokens + block.project(heads)))


def _bare(block: LastBlock, heads: Tensor) -> Tensor:
    return block.patch_maps(block.project(heads))
