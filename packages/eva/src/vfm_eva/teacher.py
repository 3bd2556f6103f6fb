"""Whose features are the target: a frozen encoder asked in every step, or what one said beforehand."""

# B batch, N patches, T target width, S' side of the teacher's image

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.patch_features import feature_width, grid_size, patch_features
from vfm.models.preprocess import Preprocess
from vfm.train import Batch, Frozen

MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)  # what autocast multiplies in bf16; norms stay in fp32


class Teacher(Frozen[nn.Module]):
    """A frozen encoder and which of its features are the target.

    EVA's choice, kept as default: the last layer, projected into the joint space, no whitening and no layer average.

    Args:
        model: a CLIP model or a timm encoder.
        preprocess: how it wants its images.
        layer: block whose tokens are taken, from 0; negative counts from the end.
        projected: through the projection into the joint space, else the final norm alone.
        normalize: to unit length.
        bf16: its matrices are kept and multiplied in bf16, as autocast has it, but not cast anew in every step; false:
            fp32, whatever the student's autocast. Default: fp32 weights, and the caller's autocast.
    """

    def __init__(
        self,
        model: ClipModel | nn.Module,
        preprocess: Preprocess,
        *,
        layer: int = -1,
        projected: bool = True,
        normalize: bool = False,
        bf16: bool | None = None,
    ) -> None:
        whole = model.module if isinstance(model, ClipModel) else model
        super().__init__(getattr(whole, "visual", whole))  # a text tower takes no room on the device
        self.model, self.preprocess = model, preprocess
        self.layer, self.projected, self.normalize, self.bf16 = layer, projected, normalize, bf16
        if bf16:
            for part in self.module.modules():
                if isinstance(part, MATRICES):
                    part.bfloat16()

    @property
    def width(self) -> int:
        """Channels of the target."""
        with self._precision(next(self.module.parameters()).device):
            return feature_width(self.model, projected=self.projected)

    def of(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """The target of a training's batch, (B, N, T), from `teacher_images` where it has them, else from `images`."""
        return self.target(batch["teacher_images" if "teacher_images" in batch else "images"], grid)

    def target(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Target features on the student's grid, (B, N, T), from uint8 images (B, 3, S', S') of the teacher's size.

        Raises:
            UserError: images of another size, no such layer, or no projection of patches.
        """
        size = self.preprocess.image_size
        if images.shape[-2:] != (size, size):
            raise UserError(
                f"the teacher wants images of {size} pixels, these have {images.shape[-1]}; give it `teacher_images`"
            )
        with torch.inference_mode(), self._precision(images.device):
            features = patch_features(
                self.model,
                self.preprocess.pixels(images),
                layer=self.layer,
                projected=self.projected,
                normalize=self.normalize,
            )
            target = to_grid(features, grid_size(self.model), grid)
        return target.clone()  # an ordinary tensor: a backward pass takes none of inference mode

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        if self.bf16 is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)


class StoredTargets(Frozen[nn.Module]):
    """Targets that come with the batches, as `targets` (B, N, n).

    Args:
        width: channels of the target, T.
        decode: makes (B, N, T) of what is stored, such as a `Pca`; default: it is the target itself.
    """

    def __init__(self, width: int, decode: nn.Module | None = None) -> None:
        super().__init__(decode or nn.Identity())
        self.width = width

    @torch.no_grad()
    def of(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """The target of a batch, (B, N, T)."""
        target: Tensor = self.module(batch["targets"])
        return target


def to_grid(features: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Patch features (B, N, T) brought bilinearly from one grid to another; unchanged where the grids are equal."""
    if source == grid:
        return features
    planes = features.transpose(1, 2).reshape(len(features), -1, *source)  # (B, T, rows, columns)
    return F.interpolate(planes.float(), size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
