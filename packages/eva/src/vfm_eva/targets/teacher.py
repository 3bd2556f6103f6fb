"""A frozen encoder whose features are the target, computed in every step."""

# B batch, N patches, T target width, S' side of the teacher's image

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import (
    ClipModel,
    Preprocess,
    cls_and_patch_tokens,
    feature_width,
    grid_size,
    load_clip,
    load_vision,
    patch_features,
    vision_preprocess,
)
from vfm.plugin import ClipCheckpoint, UserError, VisionCheckpoint
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.mosaic import cut_mosaics, join_mosaics, tiles_per_side
from vfm_eva.targets.parts import Features
from vfm_eva.targets.patch_target import PatchTarget, resample_grid

__all__ = ["Teacher", "features_of", "load_encoder", "load_teacher", "seen_images"]

# Layers that autocast multiplies in bf16. Norms stay in fp32.
MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class Teacher(PatchTarget):
    """A frozen encoder whose features are the target.

    The defaults are EVA's: the last layer, projected into the joint space, without whitening or averaging of layers.

    Args:
        model: A CLIP model or a timm encoder.
        preprocess: Preprocessing of the model's images.
        layer: Block whose tokens are used, from 0. Negative values count from the end.
        projected: Use the projection into the joint space. False: only the final norm.
        normalize: Scale features to unit length.
        mosaic: Let several smaller images share one of the model's images, as tiles.
        bf16: True stores and multiplies its matrices in bf16, as autocast would, but without a cast in every step.
            False computes in fp32 regardless of the student's autocast. None: fp32 weights and the caller's autocast.
    """

    preprocess: Preprocess
    grid: tuple[int, int]

    def __init__(
        self,
        model: ClipModel | nn.Module,
        preprocess: Preprocess,
        *,
        layer: int = -1,
        projected: bool = True,
        normalize: bool = False,
        mosaic: bool = False,
        bf16: bool | None = None,
    ) -> None:
        whole = model.module if isinstance(model, ClipModel) else model
        super().__init__(getattr(whole, "visual", whole))  # the text tower is not moved to the device
        self.model = model
        self.preprocess = preprocess
        self.layer = layer
        self.projected = projected
        self.normalize = normalize
        self.mosaic = mosaic
        self.bf16 = bf16
        self.grid = grid_size(model)
        if bf16:
            self.use_bf16()

    def use_bf16(self) -> None:
        """Store and multiply matrices in bf16 from now on."""
        self.bf16 = True
        for module in self.module.modules():
            if isinstance(module, MATRICES):
                module.bfloat16()

    @property
    def width(self) -> int:  # type: ignore[override]
        """Channels of the target, T."""
        with self._precision(next(self.module.parameters()).device):
            return feature_width(self.model, projected=self.projected)

    def preprocess_for(self, student: Preprocess) -> Preprocess:
        """Choose the preprocessing of the teacher's images.

        It is the teacher's, or a mosaic's tiles.

        Raises:
            UserError: If its patches cannot be divided among the tiles.
        """
        size = self.preprocess.image_size
        side = tiles_per_side(student.image_size, size) if self.mosaic else 1
        if size % side or any(patches % side for patches in self.grid):
            raise UserError(
                f"target.mosaic: {side} x {side} images of {student.image_size} pixels do not divide the teacher's"
                f" {self.grid[0]} x {self.grid[1]} patches; choose another image size"
            )
        return self.preprocess.model_copy(update={"image_size": size // side})

    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Compute the targets of a batch, (B, N, T)."""
        return self.features(seen_images(inputs), grid)

    def patches_and_image(self, inputs: EvaInputs, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute the targets of a batch, (B, N, T), and the teacher's feature of each whole image, (B, T).

        The image feature is the model's class token or pooled feature, projected like the patches.
        """
        images = seen_images(inputs)
        with torch.inference_mode(), self._precision(images.device):
            pixels = self._pixels(images)
            image, patches = cls_and_patch_tokens(self.model, pixels, layer=self.layer, projected=self.projected)
            if self.normalize:
                patches = F.normalize(patches, dim=-1)
            patches = resample_grid(patches, self.grid, grid)
        return patches.clone(), image.clone()

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute features on the student's grid, (B, N, T), from uint8 images (B, 3, S', S'), or tiles of a mosaic.

        Raises:
            UserError: If the images have another size, or the model lacks the layer or a projection of patches.
        """
        side = tiles_per_side(images.shape[-1], self.preprocess.image_size) if self.mosaic else 1
        with torch.inference_mode(), self._precision(images.device):
            features = self._features(self._pixels(join_mosaics(images, side)))
            features, own_grid = cut_mosaics(features, self.grid, side, len(images))
            target = resample_grid(features, own_grid, grid)
        return target.clone()  # a normal tensor: a backward pass cannot use tensors made in inference mode

    def features_at_size(self, images: Tensor) -> Tensor:
        """Compute features of images of any size, (B, N, T), with positions resampled to their patches."""
        with torch.inference_mode(), self._precision(images.device):
            features = self._features(self.preprocess.pixels(images))
        return features.clone()

    def _features(self, pixels: Tensor) -> Tensor:
        return patch_features(self.model, pixels, layer=self.layer, projected=self.projected, normalize=self.normalize)

    def _pixels(self, images: Tensor) -> Tensor:
        size = self.preprocess.image_size
        if images.shape[-2:] != (size, size):
            raise UserError(
                f"expected images of {size} pixels for the teacher, got {images.shape[-1]}; give `teacher_images`"
            )
        return self.preprocess.pixels(images)

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        if self.bf16 is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)


def features_of(
    target: Features, student: nn.Module | None, encoder: ClipModel | nn.Module, *, bf16: bool | None = None
) -> Teacher:
    """Wrap an encoder as a teacher.

    Args:
        target: Features that are predicted.
        student: The student, for its grid of patches.
        encoder: CLIP model or timm encoder.
        bf16: See `Teacher`.
    """
    preprocess = encoder.preprocess if isinstance(encoder, ClipModel) else vision_preprocess(encoder)
    return Teacher(encoder, preprocess, **target.model_dump(exclude={"type"}), bf16=bf16)


def load_teacher(
    checkpoint: ClipCheckpoint | VisionCheckpoint, target: Features, *, bf16: bool | None = None
) -> Teacher:
    """Load the encoder of a checkpoint as a teacher. See `load_encoder` for errors.

    Args:
        checkpoint: CLIP model or encoder.
        target: Features that are predicted.
        bf16: See `Teacher`.
    """
    return features_of(target, None, load_encoder(checkpoint), bf16=bf16)


def load_encoder(checkpoint: ClipCheckpoint | VisionCheckpoint) -> ClipModel | nn.Module:
    """Load a checkpoint's model, whose vision tower serves as a teacher.

    Raises:
        UserError: If the weights do not fit or are not finite.
    """
    model = load_clip(checkpoint) if isinstance(checkpoint, ClipCheckpoint) else load_vision(checkpoint)
    tower: Any = model
    prefix = ""
    if isinstance(model, ClipModel):
        tower = model.module.visual
        prefix = "visual"
    for name, weight in tower.named_parameters(prefix):
        if not weight.isfinite().all():
            raise UserError(f"{checkpoint.path}: {name} contains NaN or infinity, and so would every target")
    return model


def seen_images(inputs: EvaInputs) -> Tensor:
    """Select the images for the teacher.

    They are `teacher_images`, or else the student's images.
    """
    return inputs.images if inputs.teacher_images is None else inputs.teacher_images
