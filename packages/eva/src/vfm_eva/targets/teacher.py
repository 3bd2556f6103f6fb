"""The targets of pre-training: features of a frozen encoder that runs in every step, or stored ones."""

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
from vfm.plugin import ClipCheckpoint, SampleCache, UserError, VisionCheckpoint
from vfm.train import Frozen, Metrics
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.parts import Features
from vfm_eva.targets.pca import Pca
from vfm_eva.targets.phi_s import Statistics
from vfm_kernels import masked_cosine_loss, resultant_length

__all__ = ["PatchTarget", "StoredTargets", "Teacher", "load_targets", "load_teacher", "resample_grid"]

# What autocast multiplies in bf16; norms stay in fp32.
MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class PatchTarget(Frozen[nn.Module]):
    """What a student predicts of every patch, by what loss; subclass it for a target of your own.

    The default loss is EVA's, the negative cosine.

    Attributes:
        width: numbers that the student's head predicts of a patch, T.
        preprocess: of the images that the target is made from; None: the student's.
        is_cosine: the loss is a negative cosine.
        statistics: what is fitted to the target's features of the first images before the training.
    """

    width: int
    preprocess: Preprocess | None = None
    is_cosine: bool = True
    statistics: Statistics | None = None

    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Return the targets of a batch, (B, N, ...)."""
        raise NotImplementedError

    def features_to_fit(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Return the features of a batch that statistics are fitted to, (B, N, D)."""
        return self.targets(inputs, grid)

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Return the mean loss over the counted patches.

        Args:
            prediction: (B, K, T).
            target: (B, K, ...).
            counted: (B, K) booleans.
        """
        return masked_cosine_loss(prediction, target, counted)

    def metrics(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Metrics:
        """Return metrics beside the loss, for the arguments of `patch_loss`; each is a pass over all features.

        `constant_loss` is the loss of the best constant prediction, `mutual_cosine` the mean cosine of two predictions.
        """
        mutual = resultant_length(prediction.detach(), counted) ** 2
        return {"constant_loss": self.constant_loss(target, counted), "mutual_cosine": mutual}

    def constant_loss(self, target: Tensor, counted: Tensor) -> Tensor:
        """Return the loss of the best constant prediction."""
        return -resultant_length(target, counted)


class Teacher(PatchTarget):
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

    preprocess: Preprocess

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
    def width(self) -> int:  # type: ignore[override]
        """Channels of the target, T."""
        with self._precision(next(self.module.parameters()).device):
            return feature_width(self.model, projected=self.projected)

    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Return the targets of a batch, (B, N, T)."""
        return self.features(seen_images(inputs), grid)

    def patches_and_image(self, inputs: EvaInputs, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the targets of a batch, (B, N, T), and the teacher's feature of each whole image, (B, T).

        The latter is the model's own, its class token or what it pools, projected as the patches are.
        """
        images = seen_images(inputs)
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


class StoredTargets(PatchTarget):
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


def features_of(
    target: Features, student: nn.Module | None, encoder: ClipModel | nn.Module, *, bf16: bool | None = None
) -> Teacher:
    """Return an encoder as a teacher; `bf16` as in `Teacher`."""
    preprocess = encoder.preprocess if isinstance(encoder, ClipModel) else vision_preprocess(encoder)
    return Teacher(encoder, preprocess, **target.model_dump(exclude={"type"}), bf16=bf16)


def load_teacher(
    checkpoint: ClipCheckpoint | VisionCheckpoint, target: Features, *, bf16: bool | None = None
) -> Teacher:
    """Load the encoder of a checkpoint as a teacher; `bf16` as in `Teacher`, errors as in `load_encoder`."""
    return features_of(target, None, load_encoder(checkpoint), bf16=bf16)


def load_encoder(checkpoint: ClipCheckpoint | VisionCheckpoint) -> ClipModel | nn.Module:
    """Load a checkpoint's model, whose vision tower is a teacher.

    Raises:
        UserError: its weights do not fit, or are not finite.
    """
    model = load_clip(checkpoint) if isinstance(checkpoint, ClipCheckpoint) else load_vision(checkpoint)
    tower: Any = model.module.visual if isinstance(model, ClipModel) else model
    for name, weight in tower.named_parameters("visual" if isinstance(model, ClipModel) else ""):
        if not weight.isfinite().all():
            raise UserError(f"{checkpoint.path}: {name} contains NaN or infinity, and so would every target")
    return model


def seen_images(inputs: EvaInputs) -> Tensor:
    """Return the images that the teacher sees."""
    return inputs.images if inputs.teacher_images is None else inputs.teacher_images


def resample_grid(features: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Interpolate patch features (B, N, T) bilinearly from one grid to another; unchanged if the grids are equal."""
    if source == grid:
        return features
    planes = features.transpose(1, 2).reshape(len(features), -1, *source)  # (B, T, rows, columns)
    return F.interpolate(planes.float(), size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def squared_error(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Return the squared error, in fp32, of the counted tokens, a mean over these and the channels."""
    error = (prediction.float() - target.float()).square().mean(dim=-1)  # (B, K)
    return torch.where(counted, error, 0.0).sum() / counted.sum().clamp(min=1)


def mean_target(target: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of the counted targets, as often as there are targets, (B, K, T)."""
    mean = (target * counted[..., None]).sum(dim=(0, 1)) / counted.sum().clamp(min=1)
    return mean.expand_as(target)
