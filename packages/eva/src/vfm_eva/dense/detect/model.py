"""A detector: dense encoder, feature pyramid, region proposals, cascade."""

# B images, S side of the input, C channels

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from vfm.plugin import UserError
from vfm_eva.dense.detect.cascade import CascadeHeads, Found, Size, Truth
from vfm_eva.dense.detect.proposals import build_proposals
from vfm_eva.dense.detect.settings import DetectorSettings
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.pyramid import SimpleFeaturePyramid
from vfm_eva.dense.relative import RelativePositions


class DetectorHead(nn.Module):
    """What is added to an encoder: the pyramid, the region proposals, the cascade, relative positions."""

    def __init__(self, width: int, patch_size: int, num_classes: int, settings: DetectorSettings) -> None:
        super().__init__()
        strides = tuple(patch_size * step // 4 for step in (1, 2, 4, 8))
        self.pyramid = SimpleFeaturePyramid(width, settings.channels, strides, patch_size=patch_size)
        self.proposals = build_proposals(settings.proposals, settings.channels, (*strides, 2 * strides[-1]))
        self.relative = nn.ModuleList()
        self.cascade = CascadeHeads(settings.channels, num_classes, settings.cascade, strides, masks=settings.masks)


class Detector(nn.Module):
    """A detector on the last map of an encoder.

    Args:
        encoder: a timm vision transformer, whose parameters stay those of `encoder.visual`.
        num_classes: K.
        settings: everything else.

    Raises:
        UserError: the encoder has no patch tokens, or the image size does not fit its patches and windows.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, settings: DetectorSettings) -> None:
        super().__init__()
        windows = settings.windows
        prefix = False if windows.relative else None
        self.encoder = DenseEncoder(encoder, window=windows.window, global_blocks=windows.global_blocks, prefix=prefix)
        check_side(settings, self.encoder.patch_size)
        self.head = DetectorHead(self.encoder.width, self.encoder.patch_size, num_classes, settings)
        if windows.relative:
            whole = settings.image_size // self.encoder.patch_size
            sides = [
                whole if self.encoder.is_global(number) else windows.window for number in range(self.encoder.depth)
            ]
            pairs = zip(self.encoder.trunk.blocks, sides, strict=True)
            self.head.relative.extend(RelativePositions(block, side or whole) for block, side in pairs)
        self.settings = settings

    def losses(
        self, pixels: Tensor, truths: Sequence[Truth], sizes: Sequence[Size], order: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return all losses by name.

        Args:
            pixels: normalised, (B, 3, S, S).
            truths: objects of each image.
            sizes: height and width of the images; beyond them the input is padding.
            order: of the classes, for the federated loss (`draw_order`).
        """
        maps = self._maps(pixels)
        images = ImageList(pixels, list(sizes))
        targets = [{"boxes": truth.boxes, "labels": truth.labels} for truth in truths]
        proposals, found = self.head.proposals(images, {str(n): one for n, one in enumerate(maps)}, targets)
        losses = {"objectness_loss": found["loss_objectness"], "proposal_loss": found["loss_rpn_box_reg"]}
        return losses | self.head.cascade.losses(maps[:-1], proposals, truths, sizes, order)

    def detect(self, pixels: Tensor, sizes: Sequence[Size]) -> list[Found]:
        """Return the detections of each image; call it in evaluation mode."""
        maps = self._maps(pixels)
        images = ImageList(pixels, list(sizes))
        proposals, _ = self.head.proposals(images, {str(n): one for n, one in enumerate(maps)})
        return self.head.cascade.detect(maps[:-1], proposals, sizes, self.settings.selection)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps of all levels; the coarsest has every second value of the one before.

        They have 32 bits in any precision, since anchors and boxes are computed in the type of the maps, and 8 bits
        would round them to whole pixels.
        """
        maps = [one.float() for one in self.head.pyramid(self.encoder(pixels, self.head.relative)[0])]
        return [*maps, F.max_pool2d(maps[-1], kernel_size=1, stride=2)]


def check_side(settings: DetectorSettings, patch_size: int) -> None:
    """Check that images divide into patches, windows and the pyramid's levels.

    Raises:
        UserError: they do not.
    """
    side, window = settings.image_size, settings.windows.window
    if patch_size % 4:
        raise UserError(
            f"expected an encoder with patches of 8, 16 or 32 pixels, got {patch_size}: the pyramid's maps have strides"
            " of a quarter of a patch; patch_size: 16 resamples the patches"
        )
    step = patch_size * (window or 1)
    if side % step or side % (2 * patch_size):
        windows = f" and windows of {window}" if window else ""
        need = step if step % (2 * patch_size) == 0 else 2 * step
        raise UserError(
            f"image_size: expected a multiple of {need} (patches of {patch_size} pixels{windows}, and the pyramid"
            f" halves the map once), got {side}"
        )
