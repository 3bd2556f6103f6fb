"""The box head of a cascade stage, and the mask head."""

# R boxes, C channels, K classes, M side of a mask

from __future__ import annotations

import math
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

BOX_SIDE, MASK_SIDE = 7, 14  # sides of the pooled features; a mask has twice the side


def conv(channels: int, out: int) -> nn.Sequential:
    """Build a 3 x 3 convolution, a layer norm over channels, and a ReLU."""
    layers: nn.Sequential = Conv2dNormActivation(
        channels, out, 3, norm_layer=_norm, activation_layer=nn.ReLU, inplace=False
    )
    nn.init.kaiming_normal_(layers[0].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
    return layers


class BoxHead(nn.Module):
    """Predicts class scores and box refinements from pooled features.

    Args:
        channels: Channels of the features, C.
        outputs: K + 1, with the background as last output. Sigmoid losses leave it unused, as in detectron2.
        num_convs: Number of convolutions.
        hidden: Width of the linear layer after the convolutions.
        prior: Initial probability of a class. None: biases start at 0.
    """

    def __init__(
        self, channels: int, outputs: int, *, num_convs: int = 4, hidden: int = 1024, prior: float | None = None
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(conv(channels, channels) for _ in range(num_convs)))
        self.fc = nn.Linear(channels * BOX_SIDE**2, hidden)
        self.scores = nn.Linear(hidden, outputs)
        self.deltas = nn.Linear(hidden, 4)
        nn.init.kaiming_uniform_(self.fc.weight, a=1)
        nn.init.zeros_(self.fc.bias)
        # detectron2's standard deviations.
        for layer, std in ((self.scores, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        if prior is not None:
            # RetinaNet's prior: with thousands of classes, scores of one half would drown the rare positives in loss.
            nn.init.constant_(self.scores.bias, -math.log((1 - prior) / prior))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Predict scores (R, K + 1) and refinements (R, 4) from pooled features, (R, C, 7, 7)."""
        # Not `flatten`, whose rank is unknown to the exporter to ONNX if the number of boxes is.
        hidden = self.fc(self.convs(pooled).reshape(-1, self.fc.in_features)).relu()
        return self.scores(hidden), self.deltas(hidden)


class MaskHead(nn.Module):
    """Predicts a mask for each class from pooled features."""

    def __init__(self, channels: int, num_classes: int, num_convs: int = 4) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(conv(channels, channels) for _ in range(num_convs)))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.masks = nn.Conv2d(channels, num_classes, 1)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.upsample.bias)  # type: ignore[arg-type]
        # detectron2's, so that all masks begin at one half.
        nn.init.normal_(self.masks.weight, std=0.001)
        nn.init.zeros_(self.masks.bias)  # type: ignore[arg-type]

    def forward(self, pooled: Tensor) -> Tensor:
        """Predict mask logits (R, K, 28, 28) from pooled features, (R, C, 14, 14)."""
        masks: Tensor = self.masks(self.upsample(self.convs(pooled)).relu())
        return masks


def split(values: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
    """Split the stacked rows of all images by image."""
    if len(boxes) == 1:  # an export to ONNX has one image, and would fix the number of its rows
        return [values]
    return list(values.split(list(map(len, boxes))))  # type: ignore[no-untyped-call]


def _norm(channels: int) -> nn.Module:
    # EVA's epsilon.
    norm: nn.Module = LayerNorm2d(channels, eps=1e-6)
    return norm
