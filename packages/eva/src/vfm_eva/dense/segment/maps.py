"""Semantic segmentation with a linear layer or UperNet on an encoder's maps."""

# B images, K classes, D width, h and w rows and columns of patches, S side of the input

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.transformers_parts import modeling


class LinearMapHead(nn.Module):
    """Batch norm and a 1x1 convolution on the concatenated maps of all layers.

    Source: Oquab et al. 2023, DINOv2 (arXiv:2304.07193), section 7.4.
    """

    def __init__(self, width: int, num_layers: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width * num_layers)
        self.classify = nn.Conv2d(width * num_layers, num_classes, kernel_size=1)
        # mmsegmentation's, whose decode heads are initialised so.
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute class scores, as a single map of stride `patch_size`."""
        return [self.classify(self.norm(torch.cat(list(maps), dim=1)))]


class UperNet(nn.Module):
    """UperNet on four maps, with a second head on the third map.

    The maps are resampled to strides of 1/4, 1/2, 1 and 2 patches. The resampling follows EVA-02's segmentation code.
    It has no norm after the last blocks. The four maps get two transposed convolutions with batch norm and GELU between
    them, one transposed convolution, no layer, and max pooling. Source: Xiao et al. 2018, UPerNet (arXiv:1807.10221),
    with transformers' classes.

    Raises:
        UserError: If transformers is not installed.
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
        """Compute class scores with stride `patch_size` / 4, and in training also the second head's scores."""
        levels = [layer(features) for layer, features in zip(self.resample, maps, strict=True)]
        scores = [self.decode(levels)]
        if self.training and self.auxiliary is not None:
            scores.append(self.auxiliary(levels))
        return scores


class MapSegmenter(nn.Module):
    """An encoder with a head on its maps.

    Args:
        encoder: The encoder. Its `layers` are the inputs of the head.
        head: Computes class scores from maps.
        frozen: Do not train the encoder.
    """

    def __init__(self, encoder: DenseEncoder, head: LinearMapHead | UperNet, *, frozen: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.frozen = frozen
        if frozen:
            encoder.requires_grad_(False)
        # Freeze unused weights: with several processes, DDP would wait for their gradients.
        for block in encoder.trunk.blocks[max(encoder.layers) + 1 :]:
            block.requires_grad_(False)
        if isinstance(head, UperNet) and isinstance(encoder.trunk.final_norm, nn.Module):
            encoder.trunk.final_norm.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute class scores of the head, then of a second head if present, (B, K, h, w) with any stride."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.encoder(pixels)
            if isinstance(self.head, LinearMapHead):
                norm = self.encoder.trunk.final_norm
                # A linear head reads normed tokens, as a probe does. UperNet's convolutions have norms of their own.
                maps = [norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for features in maps]
        scores: list[Tensor] = self.head(maps)
        return scores


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy over labelled pixels. Without labelled pixels the sum is 0.

    Args:
        scores: (B, K, h, w). They are interpolated to the size of the labels.
        labels: Class of each pixel, -1 where it is unlabelled, (B, S, S).
    """
    full = F.interpolate(scores.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels.long(), ignore_index=-1, reduction="sum")
