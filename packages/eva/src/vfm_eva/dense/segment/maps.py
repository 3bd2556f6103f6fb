"""Semantic segmentation by a head on the maps of an encoder: a linear layer, or UperNet."""

# B images, K classes, D width, h and w rows and columns of patches, S side of the input

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.transformers_parts import modeling


class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution on the maps of all layers, side by side.

    Source: Oquab et al. 2023, DINOv2 (arXiv:2304.07193), section 7.4.
    """

    def __init__(self, width: int, num_layers: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width * num_layers)
        self.classify = nn.Conv2d(width * num_layers, num_classes, kernel_size=1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the scores of the classes, one map of stride `patch_size`."""
        return [self.classify(self.norm(torch.cat(list(maps), dim=1)))]


class UperNet(nn.Module):
    """UperNet on four maps, resampled to a quarter, half, one and two patches, with a second head on the third.

    Sources: Xiao et al. 2018, UPerNet (arXiv:1807.10221), by transformers' classes; the resampling is that of EVA-02's
    segmentation code, which has no norm after the last blocks: two transposed convolutions with a batch norm and GELU
    between them, one, none, and a maximum.

    Raises:
        UserError: transformers is not installed.
    """

    def __init__(self, width: int, num_classes: int, channels: int, *, auxiliary: bool = True) -> None:
        super().__init__()
        parts = modeling("upernet")
        config = parts.UperNetConfig(
            hidden_size=channels,
            num_labels=num_classes,
            auxiliary_in_channels=width,
            auxiliary_channels=256,
            auxiliary_num_convs=1,
            auxiliary_concat_input=False,
        )
        self.resample = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                ),
                nn.Sequential(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2),
            ]
        )
        self.decode: nn.Module = parts.UperNetHead(config, [width] * 4)
        self.auxiliary: nn.Module | None = parts.UperNetFCNHead(config, [width] * 4) if auxiliary else None

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the scores of the classes with stride `patch_size` / 4, in training those of the second head too."""
        levels = [layer(one) for layer, one in zip(self.resample, maps, strict=True)]
        scores = [self.decode(levels)]
        if self.training and self.auxiliary is not None:
            scores.append(self.auxiliary(levels))
        return scores


class MapSegmenter(nn.Module):
    """An encoder with a head on its maps.

    Args:
        encoder: whose `layers` the head reads.
        head: maps to scores of the classes.
        frozen: the encoder is not trained.
    """

    def __init__(self, encoder: DenseEncoder, head: LinearHead | UperNet, *, frozen: bool = False) -> None:
        super().__init__()
        self.encoder, self.head, self.frozen = encoder, head, frozen
        if frozen:
            encoder.requires_grad_(False)
        # What is not read is not trained: processes would wait for its gradients.
        for block in encoder.trunk.blocks[max(encoder.layers) + 1 :]:
            block.requires_grad_(False)
        if isinstance(head, UperNet) and isinstance(encoder.trunk.final_norm, nn.Module):
            encoder.trunk.final_norm.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the scores of the classes, (B, K, h, w) of any stride: of the head, then of a second head."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.encoder(pixels)
            if isinstance(self.head, LinearHead):
                norm = self.encoder.trunk.final_norm
                maps = [norm(one.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for one in maps]
        scores: list[Tensor] = self.head(maps)
        return scores


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropy over the labelled pixels, and none for images without one.

    Args:
        scores: (B, K, h, w), interpolated to the labels.
        labels: class of each pixel, -1: unlabelled, (B, S, S).
    """
    full = F.interpolate(scores.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels.long(), ignore_index=-1, reduction="sum")
