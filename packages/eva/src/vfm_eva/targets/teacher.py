"""The targets of pre-training: features of a frozen encoder that runs in every step, or stored ones."""

# B batch, N patches, T target width, S' side of the teacher's image

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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
from vfm.plugin import ClipCheckpoint, SampleCache, UserError, VisionCheckpoint
from vfm.train import Frozen
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.parts import Target
from vfm_eva.targets.pca import Pca

__all__ = ["StoredTargets", "Teacher", "load_targets", "load_teacher", "resample_grid"]

# What autocast multiplies in bf16; norms stay in fp32.
MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class Teacher(Frozen[nn.Module]):
    """A frozen encoder, some features of which are the target.

    EVA's choice is the default: the last layer, projected into the joint space, without whitening or averages of
    layers.

    Args:
        model: a CLIP model or a timm encoder.
        preprocess: of the model's images.
        layer: block whose tokens are used, from 0; negative values count from the end.
        projected: use the projection into the joint space; False: only the final norm.
        normalize: to unit length.
        bf16: True stores and multiplies its matrices in bf16, as autocast would, but without a cast in every step;
            False computes in fp32 whatever the student's autocast. None: fp32 weights, and the caller's autocast.
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
        super().__init__(getattr(whole, "visual", whole))  # the text tower is not moved to the device
        self.model, self.preprocess = model, preprocess
        self.layer, self.projected, self.normalize, self.bf16 = layer, projected, normalize, bf16
        if bf16:
            self.use_bf16()

    def use_bf16(self) -> None:
        """Store and multiply matrices in bf16 from now on."""
        self.bf16 = True
        for module in self.module.modules():
            if isinstance(module, MATRICES):
                module.bfloat16()

    @property
    def width(self) -> int:
        """Channels of the target, T."""
        with self._precision(next(self.module.parameters()).device):
            return feature_width(self.model, projected=self.projected)

    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Return the targets of a batch, (B, N, T)."""
        return self.features(_seen(inputs), grid)

    def patches_and_image(self, inputs: EvaInputs, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the targets of a batch, (B, N, T), and the teacher's feature of each whole image, (B, T).

        The latter is the model's own, its class token or what it pools, projected as the patches are.
        """
        images = _seen(inputs)
        with torch.inference_mode(), self._precision(images.device):
            image, patches = cls_and_patch_tokens(self.model, self._pixels(images), projected=self.projected)
            if self.layer == -1:
                patches = F.normalize(patches, dim=-1) if self.normalize else patches
                patches = resample_grid(patches, grid_size(self.model), grid)
        return patches.clone() if self.layer == -1 else self.features(images, grid), image.clone()

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return features on the student's grid, (B, N, T), of uint8 images (B, 3, S', S').

        Raises:
            UserError: images of another size, no such layer, or no projection of patches.
        """
        with torch.inference_mode(), self._precision(images.device):
            features = patch_features(
                self.model,
                self._pixels(images),
                layer=self.layer,
                projected=self.projected,
                normalize=self.normalize,
            )
            target = resample_grid(features, grid_size(self.model), grid)
        return target.clone()  # an ordinary tensor: a backward pass cannot use one of inference mode

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


class StoredTargets(Frozen[nn.Module]):
    """Targets that come with the batches.

    Args:
        width: channels of the target, T.
        decode: returns (B, N, T) for the stored values, such as a `Pca`; default: the values are the target.
    """

    def __init__(self, width: int, decode: nn.Module | None = None) -> None:
        super().__init__(decode or nn.Identity())
        self.width = width

    @torch.no_grad()
    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Return the targets of a batch, (B, N, T)."""
        target: Tensor = self.module(inputs.targets)
        return target


def load_targets(cache: SampleCache) -> StoredTargets:
    """Return what decodes the stored targets of a cache."""
    pca = Pca.load(cache.path) if cache.basis else None
    return StoredTargets(len(pca.mean) if pca else cache.shape[-1], pca)


def load_teacher(checkpoint: ClipCheckpoint | VisionCheckpoint, target: Target, *, bf16: bool | None = None) -> Teacher:
    """Load the encoder of a checkpoint as a teacher; `bf16` as in `Teacher`.

    Raises:
        UserError: its weights do not fit, or are not finite.
    """
    if isinstance(checkpoint, ClipCheckpoint):
        clip = load_clip(checkpoint)
        teacher = Teacher(clip, clip.preprocess, **target.model_dump(), bf16=bf16)
    else:
        encoder = load_vision(checkpoint)
        teacher = Teacher(encoder, vision_preprocess(encoder), **target.model_dump(), bf16=bf16)
    prefix = "visual" if isinstance(checkpoint, ClipCheckpoint) else ""
    for name, weight in teacher.module.named_parameters(prefix):
        if not weight.isfinite().all():
            raise UserError(f"{checkpoint.path}: {name} contains NaN or infinity, and so would every target")
    return teacher


def _seen(inputs: EvaInputs) -> Tensor:
    """Return the images that the teacher sees."""
    return inputs.images if inputs.teacher_images is None else inputs.teacher_images


def resample_grid(features: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Interpolate patch features (B, N, T) bilinearly from one grid to another; unchanged if the grids are equal."""
    if source == grid:
        return features
    planes = features.transpose(1, 2).reshape(len(features), -1, *source)  # (B, T, rows, columns)
    return F.interpolate(planes.float(), size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
