"""A detector with dense encoder, feature pyramid, region proposals and cascade."""

# B images, S side of the input, C channels

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from vfm.plugin import UserError
from vfm_eva.dense.detect.cascade import CascadeHeads
from vfm_eva.dense.detect.objects import DetectedObjects, Size, TargetObjects
from vfm_eva.dense.detect.proposals import build_proposals
from vfm_eva.dense.detect.settings import DetectorSettings
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.pyramid import SimpleFeaturePyramid
from vfm_eva.dense.relative import RelativePositions


class DetectorHead(nn.Module):
    """The parts added to an encoder.

    They are pyramid, region proposals, cascade and relative positions.
    """

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
        encoder: A timm vision transformer, whose parameters are found below `encoder.visual`.
        num_classes: Number of classes, K.
        settings: All other settings.

    Raises:
        UserError: If the encoder has no patch tokens, or the image size does not fit its patches and windows.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, settings: DetectorSettings) -> None:
        super().__init__()
        windows = settings.windows
        prefix = False if windows.relative else None
        self.encoder = DenseEncoder(encoder, window=windows.window, global_blocks=windows.global_blocks, prefix=prefix)
        check_side(settings, self.encoder.patch_size)
        self.head = DetectorHead(self.encoder.width, self.encoder.patch_size, num_classes, settings)
        if windows.relative:
            map_side = _trained_side(settings, self.encoder.patch_size)
            for number, block in enumerate(self.encoder.trunk.blocks):
                side = map_side if self.encoder.is_global(number) else windows.window
                self.head.relative.append(RelativePositions(block, side or map_side, windows.relative_resizing))
        self.settings = settings

    def losses(
        self, pixels: Tensor, truths: Sequence[TargetObjects], sizes: Sequence[Size], order: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute all losses by name.

        Args:
            pixels: Normalised images, (B, 3, S, S).
            truths: Objects of each image.
            sizes: Height and width of the images. The rest of the input is padding.
            order: Order of the classes from `draw_order`, for the federated loss.
        """
        maps = self._maps(pixels)
        images = ImageList(pixels, list(sizes))
        targets = [{"boxes": truth.boxes, "labels": truth.labels} for truth in truths]
        proposals, parts = self.head.proposals(images, _by_name(maps), targets)
        losses = {"objectness_loss": parts["loss_objectness"], "proposal_loss": parts["loss_rpn_box_reg"]}
        return losses | self.head.cascade.losses(maps[:-1], proposals, truths, sizes, order)

    def detect(self, pixels: Tensor, sizes: Sequence[Size]) -> list[DetectedObjects]:
        """Detect the objects of each image. Call it in evaluation mode."""
        maps = self._maps(pixels)
        images = ImageList(pixels, list(sizes))
        proposals, _ = self.head.proposals(images, _by_name(maps))
        return self.head.cascade.detect(maps[:-1], proposals, sizes, self.settings.selection)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """Compute the maps of all levels. The coarsest takes every second value of the previous level.

        The maps are always fp32: anchors and boxes are computed in the type of the maps, and the 8 significant bits of
        bf16 would round them to whole pixels.
        """
        encoded = self.encoder(pixels, self.head.relative)[0]
        # torchvision's proposals and pooling lose precision, or have no kernel, in bf16.
        maps = [level.float() for level in self.head.pyramid(encoded)]
        return [*maps, F.max_pool2d(maps[-1], kernel_size=1, stride=2)]


def _by_name(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return {str(level): features for level, features in enumerate(maps)}  # the form that torchvision expects


def check_side(settings: DetectorSettings, patch_size: int) -> None:
    """Check that the image size divides into patches, windows and pyramid levels.

    Raises:
        UserError: If it does not.
    """
    side = settings.image_size
    window = settings.windows.window
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


def _trained_side(settings: DetectorSettings, patch_size: int) -> int:
    """Compute the side in patches that the relative positions of global blocks are for.

    Raises:
        UserError: If it is no whole number of at least 2.
    """
    size = settings.windows.relative_size or settings.image_size
    if size % patch_size or size < 2 * patch_size:
        raise UserError(
            f"windows.relative_size: expected a multiple of {patch_size} pixels (a patch) from {2 * patch_size}, got"
            f" {size}"
        )
    return size // patch_size
