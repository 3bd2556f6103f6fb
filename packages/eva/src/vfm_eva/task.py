"""Masked feature modelling: the student sees mask tokens and predicts the teacher's features behind them."""

# B batch, N patches, D student width, T target width, S side of the image

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.artifacts import VisionCheckpoint
from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.patch_features import feature_width, grid_size, patch_features
from vfm.models.preprocess import Preprocess
from vfm.models.vision import save_vision, vision_preprocess
from vfm.train import Batch, Frozen, Metrics, Task
from vfm_kernels import mask_tokens, masked_cosine_loss, token_cosine


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder and which of its features are the target.

    EVA's choice, kept as default: the last layer, projected into the joint space, no whitening and no layer average.
    """

    model: ClipModel | nn.Module
    preprocess: Preprocess
    layer: int = -1
    projected: bool = True
    normalize: bool = False

    @property
    def width(self) -> int:
        """Channels of the target."""
        return feature_width(self.model, projected=self.projected)

    @torch.no_grad()
    def target(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Target features on the student's grid, (B, N, T), from uint8 images (B, 3, S, S) of the student's size."""
        size = self.preprocess.image_size
        if images.shape[-1] != size:
            resized = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
            images = resized.round().clamp(0, 255).to(torch.uint8)
        features = patch_features(
            self.model,
            self.preprocess.pixels(images),
            layer=self.layer,
            projected=self.projected,
            normalize=self.normalize,
        )
        return to_grid(features, grid_size(self.model), grid)


def to_grid(features: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Patch features (B, N, T) brought bilinearly from one grid to another; unchanged where the grids are equal."""
    if source == grid:
        return features
    planes = features.transpose(1, 2).reshape(len(features), -1, *source)
    return F.interpolate(planes.float(), size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


class EvaTask(Task):
    """EVA's pre-training: all tokens go through the encoder, the loss is on the masked ones alone.

    Args:
        student: a timm vision transformer (`Eva` or `VisionTransformer`) of fixed image size, without a head.
        teacher: gives the target; held frozen, outside what is trained and saved.

    Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.1: negative cosine between the prediction and the CLIP
    feature of each masked patch, in fp32.
    """

    def __init__(self, student: nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        model = teacher.model
        self.frozen_teacher = Frozen(model.module if isinstance(model, ClipModel) else model)
        self.preprocess = vision_preprocess(student)
        self.grid = grid_size(student)
        width: Any = student.num_features
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head = nn.Linear(width, teacher.width)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of `images` (B, 3, S, S) uint8 under `bool_mask` (B, N), True = masked."""
        bool_mask = batch["bool_mask"]
        target = self.teacher.target(batch["images"], self.grid)
        prediction = self.head(self.student_tokens(batch["images"], bool_mask)[bool_mask])
        loss = masked_cosine_loss(prediction, target[bool_mask])
        return loss, {"masked_share": bool_mask.float().mean()}

    def student_tokens(self, images: Tensor, bool_mask: Tensor) -> Tensor:
        """The student's last patch tokens after its final norm, (B, N, D); masked patches enter as the mask token."""
        student: Any = self.student
        with _masked(student.patch_embed, self.mask_token, bool_mask):
            tokens = student.forward_features(self.preprocess.pixels(images))
        patch_tokens: Tensor = student.fc_norm(tokens[:, student.num_prefix_tokens :])
        return patch_tokens

    @torch.no_grad()
    def cosine_map(self, images: Tensor, bool_mask: Tensor) -> Tensor:
        """How well each patch's feature is predicted, (B, N) cosines, masked or not."""
        prediction = self.head(self.student_tokens(images, bool_mask))
        return token_cosine(prediction, self.teacher.target(images, self.grid))

    def export(self, directory: Path) -> VisionCheckpoint:
        """The student in timm's layout; mask token and head were for pre-training only."""
        return save_vision(self.student, directory)


@contextmanager
def _masked(patch_embed: nn.Module, mask_token: Tensor, bool_mask: Tensor) -> Iterator[None]:
    """Lets the mask token take the place of masked patch embeddings, before positions are added."""

    def replace(module: nn.Module, inputs: Any, patch_tokens: Tensor) -> Tensor:
        return mask_tokens(patch_tokens, mask_token, bool_mask)

    handle = patch_embed.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def check_fit(student: nn.Module, teacher: Teacher, num_masked: int) -> None:
    """Refuses what cannot work before anything is trained.

    Raises:
        UserError: either is no vision transformer, the teacher has no such target, or the mask leaves nothing.
    """
    rows, columns = grid_size(student)
    feature_width(teacher.model, projected=teacher.projected)
    if not 0 < num_masked < rows * columns:
        raise UserError(
            f"mask_ratio masks {num_masked} of the student's {rows} x {columns} patches; some must be masked, some seen"
        )
