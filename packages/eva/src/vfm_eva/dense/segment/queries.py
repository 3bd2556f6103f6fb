"""Segmentation with queries that run through the last blocks of an encoder, for all kinds of segments.

A query predicts a class or `none`, and a mask: the dot product of its token with the map of the patches. In training a
query attends only to the patches of its mask with a probability that falls from 1 to 0, so that the trained model runs
as the plain encoder with a few more tokens.

Source: Kerssies et al. 2025, EoMT (arXiv:2503.19108), with layers and initial values as in transformers' `eomt`. On a
frozen encoder, copies of the last blocks are trained in place of the blocks, as in PMT (arXiv:2603.25398).
"""

# B images, Q queries, K classes, N tokens, D width, h and w rows and columns of patches, H and W sides of the masks

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.plugin import UserError
from vfm_eva.dense.encoder import DenseEncoder, Tokens
from vfm_eva.dense.windows import Grid

MASK_STRIDE = 4  # pixels


@dataclass(frozen=True)
class QueryPredictions:
    """Predictions of the queries at a depth of the encoder.

    Attributes:
        classes: Scores of the classes and of `none`, (B, Q, K + 1).
        masks: Mask scores of the pixels, (B, Q, H, W). They have no gradient if `embeddings` and `maps` are given.
        embeddings: Mask embeddings of the queries, (B, Q, D).
        maps: Features of the pixels, (B, H, W, D).
    """

    classes: Tensor
    masks: Tensor
    embeddings: Tensor | None = None
    maps: Tensor | None = None

    def masks_of(self, queries: Tensor, counts: Sequence[int]) -> Tensor:
        """Compute the masks of some queries with gradient, (N, H, W).

        A loss needs the masks of few queries. Only these are multiplied again, so the others need no backward pass.

        Args:
            queries: Queries of all images, one image after another, (N,).
            counts: Number of queries of each image.
        """
        rows = torch.split(queries, list(counts))
        if self.embeddings is None or self.maps is None:
            return torch.cat([masks[row] for masks, row in zip(self.masks, rows, strict=True)])
        parts = []
        for embeddings, maps, row in zip(self.embeddings.unbind(), self.maps.unbind(), rows, strict=True):
            parts.append(mask_scores(embeddings[row], maps))
        return torch.cat(parts)


def mask_scores(embeddings: Tensor, maps: Tensor) -> Tensor:
    """Compute the dot products of queries (..., Q, D) with the pixels of maps (..., H, W, D), (..., Q, H, W)."""
    pixels = maps.flatten(-3, -2).to(embeddings.dtype)
    return (embeddings @ pixels.mT).view(*embeddings.shape[:-1], *maps.shape[-3:-1])


class Upscale(nn.Module):
    """Doubles the rows and columns of a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.smooth = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """Upscale a map, (B, h, w, D) to (B, 2 h, 2 w, D).

        The kernel of `enlarge` does not overlap, so a single matrix product turns each pixel into four. On a CPU this
        is faster than torch's transposed convolution (the backward pass by a quarter).
        """
        assert self.enlarge.bias is not None
        width = maps.shape[-1]
        weight = self.enlarge.weight.permute(2, 3, 1, 0).reshape(4 * width, width)
        # A transposed convolution whose stride equals its kernel is a matrix product with four outputs a pixel.
        four = F.linear(maps, weight, self.enlarge.bias.repeat(4)).view(*maps.shape[:-1], 2, 2, width)
        larger = four.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)  # (B, 2 h, 2 w, D)
        smooth = self.smooth(F.gelu(larger).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        normed: Tensor = self.norm(smooth)
        return normed


class QueriesHead(nn.Module):
    """The queries, and the layers that predict classes and masks of stride 4 from query and patch tokens.

    Raises:
        UserError: If the patch size is not a power of two from 4 on, so that doubling cannot reach stride 4.
    """

    def __init__(self, width: int, num_classes: int, num_queries: int, patch_size: int) -> None:
        super().__init__()
        doublings = math.log2(patch_size / MASK_STRIDE)
        if doublings < 0 or doublings % 1:
            raise UserError(
                f"head: masks have a stride of {MASK_STRIDE} pixels, so patches must have 4, 8, 16 or 32, got"
                f" {patch_size}; set patch_size to resample the encoder's patches"
            )
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.classify = nn.Linear(width, num_classes + 1)
        self.embed = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.upscale = nn.Sequential(*(Upscale(width) for _ in range(int(doublings))))
        nn.init.normal_(self.queries)

    def forward(self, queries: Tensor, maps: Tensor) -> QueryPredictions:
        """Predict from queries (B, Q, D) and maps of patches (B, h, w, D), both after the final norm."""
        embeddings = self.embed(queries)
        larger = self.upscale(maps)
        with torch.no_grad():
            # Matching only reads them. The loss computes the few masks that it needs again (`masks_of`), so that no
            # graph of all of them is stored.
            masks = mask_scores(embeddings, larger)
        return QueryPredictions(self.classify(queries), masks, embeddings, larger)


class QuerySegmenter(nn.Module):
    """An encoder with queries in its last blocks.

    Args:
        encoder: Encoder with prefix tokens and without windows in its last blocks.
        head: The queries and their predictors.
        num_blocks: Number of last blocks that the queries run through.
        frozen: Keep the encoder's weights, and train copies of these blocks and of the final norm.
    """

    def __init__(self, encoder: DenseEncoder, head: QueriesHead, num_blocks: int, *, frozen: bool = False) -> None:
        super().__init__()
        if not 1 <= num_blocks <= encoder.depth:
            raise UserError(f"head.num_blocks: expected 1 to {encoder.depth}, the encoder's blocks, got {num_blocks}")
        self.encoder = encoder
        self.head = head
        self.frozen = frozen
        self.blocks = range(encoder.depth - num_blocks, encoder.depth)
        self.copies = nn.ModuleDict()
        if frozen:
            encoder.requires_grad_(False)
            trunk = encoder.trunk
            self.copies = nn.ModuleDict({str(number): deepcopy(trunk.blocks[number]) for number in self.blocks})
            assert isinstance(trunk.final_norm, nn.Module)
            self.copies["norm"] = deepcopy(trunk.final_norm)
            self.copies.requires_grad_(True)

    def forward(self, images: Tensor, keep: Sequence[float] | None = None) -> list[QueryPredictions]:
        """Predict after the last block, and in training also before each block with queries.

        Args:
            images: Normalised images, (B, 3, S, S).
            keep: For each block with queries, the probability that a query attends only to its mask. None: never, and
                only the last predictions are returned.
        """
        tokens = self._before_queries(images)
        queries = self.head.queries.expand(images.shape[0], -1, -1).to(tokens.values.dtype)
        num_queries = queries.shape[1]
        tokens = Tokens(torch.cat([queries, tokens.values], dim=1), num_queries + tokens.num_prefix, tokens.grid)
        if self.frozen:
            copies = {number: self.copies[str(number)] for number in self.blocks}
        else:
            copies = None
        predictions: list[QueryPredictions] = []
        for depth, number in enumerate(self.blocks):
            visible = None
            if keep is not None:
                predictions.append(self.predict(tokens))
                if keep[depth] > 0:
                    visible = attention_mask(predictions[-1].masks, tokens, keep[depth])
            tokens = self.encoder.run(tokens, [number], visible, copies)
        return [*predictions, self.predict(tokens)]

    def predict(self, tokens: Tokens) -> QueryPredictions:
        """Compute the predictions of the queries among the tokens."""
        norm = self.copies["norm"] if self.frozen else self.encoder.trunk.final_norm
        normed = replace(tokens, values=norm(tokens.values))
        queries = normed.values[:, : len(self.head.queries)]
        predictions: QueryPredictions = self.head(queries, normed.maps.permute(0, 2, 3, 1))
        return predictions

    def _before_queries(self, images: Tensor) -> Tokens:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder.run(self.encoder.embed(images), range(self.blocks.start))


def attention_mask(masks: Tensor, tokens: Tokens, keep: float) -> Tensor:
    """Build the attention mask of a block with queries.

    A query sees only the patches of its mask. All other tokens see everything.

    Args:
        masks: Scores of the queries' masks, (B, Q, H, W). A patch is in the mask where its score is above 0.
        tokens: Queries, prefix tokens and patches.
        keep: Probability that a query is restricted. It is drawn from torch's generator unless it is 1.

    Returns:
        (B, 1, N, N), True: sees.
    """
    batch, num_queries = masks.shape[:2]
    inside = at_patches(masks.detach(), tokens.grid) > 0
    if keep < 1:
        # Whole queries are freed at random, as in EoMT's annealing, until none is masked and the mask can be left out
        # at inference.
        free = torch.rand(batch, num_queries, device=masks.device) > keep
        inside = inside | free[:, :, None]
    num_tokens = tokens.values.shape[1]
    visible = torch.ones(batch, 1, num_tokens, num_tokens, dtype=torch.bool, device=masks.device)
    visible[:, 0, :num_queries, tokens.num_prefix :] = inside
    return visible


def at_patches(masks: Tensor, grid: Grid) -> Tensor:
    """Interpolate mask scores to the patches, (B, Q, H, W) to (B, Q, h w)."""
    return F.interpolate(masks, size=grid, mode="bilinear", align_corners=False).flatten(2)


def annealed(step: int, num_steps: int, num_blocks: int, power: float = 0.9) -> list[float]:
    """Compute the probability that a query attends only to its mask, for each block with queries.

    It falls from 1 to 0 for one block after another, each over 1 / (num_blocks + 2) of the training steps. In the first
    and the last of these periods no probability changes. This gives EoMT's steps for COCO: 14,782 to 73,910 of 88,692
    for four blocks.

    Args:
        step: Current step.
        num_steps: Steps of the training.
        num_blocks: Number of blocks with queries.
        power: Exponent of the decay.
    """
    # EoMT: one period before the first block is annealed and one after the last.
    period = num_steps / (num_blocks + 2)
    probabilities = []
    for block in range(num_blocks):
        done = min(1.0, max(0.0, step / period - 1 - block))  # share of the block's period that has passed
        probabilities.append((1 - done) ** power)
    return probabilities
