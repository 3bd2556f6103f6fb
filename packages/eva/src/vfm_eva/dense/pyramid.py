"""The simple feature pyramid: maps of several strides from the single map of a plain vision transformer.

Source: Li et al. 2022, ViTDet (arXiv:2203.16527), section 3 and appendix A.2. Layers, their order and norms are as in
detectron2's `SimpleFeaturePyramid`.
"""

# B images, D width of the encoder, h and w rows and columns of its map

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vfm.plugin import UserError


class SimpleFeaturePyramid(nn.Module):
    """Resamples a map of stride `patch_size` to other strides, with separate layers for each stride.

    Args:
        width: Channels of the input, D.
        out: Channels of all output maps.
        scales: Strides of the output maps in pixels, from the finest.
        patch_size: Stride of the input in pixels.

    Raises:
        UserError: If a stride is not 4, 2, 1 or 1/2 times finer than the input's.
    """

    def __init__(self, width: int, out: int, scales: Sequence[int] = (4, 8, 16, 32), *, patch_size: int = 16) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.patch_size = patch_size
        self.levels = nn.ModuleList(_level(width, out, patch_size, stride) for stride in scales)

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Compute the maps of all strides.

        Args:
            maps: (B, D, h, w).

        Returns:
            (B, out, h * patch_size / stride, w * patch_size / stride) for each stride.
        """
        return [level(maps) for level in self.levels]


def _level(width: int, out: int, patch_size: int, stride: int) -> nn.Sequential:
    """Build the layers for the map of a stride."""
    resample, channels = _resampling(width, patch_size, stride)
    project = [
        nn.Conv2d(channels, out, kernel_size=1, bias=False),
        LayerNorm2d(out, eps=1e-6),
        nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out, eps=1e-6),
    ]
    return nn.Sequential(*resample, *project)


def _resampling(width: int, patch_size: int, stride: int) -> tuple[list[nn.Module], int]:
    """Build the layers that change the stride, and return them with their output channels."""
    if stride * 4 == patch_size:
        return [
            nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2),
            LayerNorm2d(width // 2, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, kernel_size=2, stride=2),
        ], width // 4
    if stride * 2 == patch_size:
        return [nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)], width // 2
    if stride == patch_size:
        return [], width
    if stride == 2 * patch_size:
        return [nn.MaxPool2d(kernel_size=2, stride=2)], width
    raise UserError(
        f"scales: expected strides of {patch_size // 4}, {patch_size // 2}, {patch_size} or {2 * patch_size} pixels for"
        f" patches of {patch_size}, got {stride}"
    )
