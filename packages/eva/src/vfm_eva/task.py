"""Masked feature modelling: the student sees mask tokens and predicts the teacher's features behind them."""

# B batch, N patches, K masked patches at most, D student width, T target width, S side of the image

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.artifacts import VisionCheckpoint
from vfm.config import UserError
from vfm.eval.encode import PooledVision
from vfm.models.clip import ClipModel
from vfm.models.patch_features import feature_width, grid_size, patch_features
from vfm.models.preprocess import Preprocess
from vfm.models.vision import save_vision, vision_preprocess
from vfm.train import Batch, Frozen, Metrics, Task
from vfm_kernels import gather_tokens, mask_tokens, masked_cosine_loss, masked_index, token_cosine


class Teacher(Frozen[nn.Module]):
    """A frozen encoder and which of its features are the target.

    EVA's choice, kept as default: the last layer, projected into the joint space, no whitening and no layer average.

    Args:
        model: a CLIP model or a timm encoder.
        preprocess: how it wants its images.
        layer: block whose tokens are taken, from 0; negative counts from the end.
        projected: through the projection into the joint space, else the final norm alone.
        normalize: to unit length.
    """

    def __init__(
        self,
        model: ClipModel | nn.Module,
        preprocess: Preprocess,
        *,
        layer: int = -1,
        projected: bool = True,
        normalize: bool = False,
    ) -> None:
        super().__init__(model.module if isinstance(model, ClipModel) else model)
        self.model, self.preprocess = model, preprocess
        self.layer, self.projected, self.normalize = layer, projected, normalize

    @property
    def width(self) -> int:
        """Channels of the target."""
        return feature_width(self.model, projected=self.projected)

    @torch.no_grad()
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
    planes = features.transpose(1, 2).reshape(len(features), -1, *source)  # (B, T, rows, columns)
    return F.interpolate(planes.float(), size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


class EvaTask(Task):
    """EVA's pre-training: all tokens go through the encoder, the loss is on the masked ones alone.

    A batch holds `images` (B, 3, S, S) uint8, `bool_mask` (B, N) with True = masked and, for a teacher of another
    size, `teacher_images` (B, 3, S', S') uint8; where there is no teacher, `targets` (B, N, T). Shapes are static and
    nothing waits for the device, whatever the masks.

    Args:
        student: a timm vision transformer (`Eva` or `VisionTransformer`) of fixed image size, without a head.
        teacher: gives the target; held frozen, outside what is trained and saved. Or the width T of the `targets` that
            come with the batches.
        num_masked: the most patches that a mask hides (K): so many go through the head, those that the mask does not
            hide count for nothing. What a mask hides beyond it is left out of the loss. Default: all patches.
        seed: draws the mask token and the head.

    Raises:
        UserError: the student cannot be masked, `num_masked` leaves nothing, or the teacher has no such target.

    Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.1: negative cosine between the prediction and the CLIP
    feature of each masked patch, in fp32. It departs in one point: the mask token is not decayed.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher | int, *, num_masked: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.grid = student_grid(student, num_masked)
        self.num_masked = num_masked or self.grid[0] * self.grid[1]
        self.student, self.teacher = student, teacher
        self.preprocess = vision_preprocess(student)
        width: Any = student.num_features
        self.mask_token = nn.Parameter(torch.zeros(width))  # a vector, so that it is not decayed
        self.head = nn.Linear(width, teacher if isinstance(teacher, int) else teacher.width)
        generator = torch.Generator().manual_seed(seed + 1)  # the student may well be drawn from `seed`
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        if pooling := getattr(student, "attn_pool", None):  # patches never meet it, and DDP would wait for its gradient
            pooling.requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of a batch, and the share of the patches that is masked."""
        bool_mask = batch["bool_mask"]
        index = masked_index(bool_mask, self.num_masked)  # (B, K)
        prediction = self.head(gather_tokens(self.student_tokens(batch["images"], bool_mask), index))
        target = gather_tokens(self.target(batch), index)
        loss = masked_cosine_loss(prediction, target, bool_mask.gather(1, index))
        return loss, {"masked_share": bool_mask.float().mean()}

    def student_tokens(self, images: Tensor, bool_mask: Tensor) -> Tensor:
        """The student's last patch tokens after its final norm, (B, N, D); masked patches enter as the mask token."""
        student: Any = self.student
        with _masked(student.patch_embed, self.mask_token, bool_mask):
            tokens = student.forward_features(self.preprocess.pixels(images))
        patch_tokens: Tensor = student.fc_norm(tokens[:, student.num_prefix_tokens :])
        return patch_tokens

    def target(self, batch: Batch) -> Tensor:
        """What the teacher says of every patch, (B, N, T)."""
        if isinstance(self.teacher, int):
            targets: Tensor = batch["targets"]
            return targets
        return self.teacher.target(batch["teacher_images" if "teacher_images" in batch else "images"], self.grid)

    @torch.no_grad()
    def cosine_map(self, batch: Batch) -> Tensor:
        """How well each patch's feature is predicted, (B, N) cosines, masked or not."""
        prediction = self.head(self.student_tokens(batch["images"], batch["bool_mask"]))
        return token_cosine(prediction, self.target(batch))

    def encoder(self) -> PooledVision:
        """The student with its pooled features."""
        return PooledVision(self.student, self.preprocess)

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


def student_grid(student: nn.Module, num_masked: int | None = None) -> tuple[int, int]:
    """Rows and columns of a student's patches, once it is known that they can be masked.

    Raises:
        UserError: it is no vision transformer, its patches overlap, are dropped or do not fill the image, or the mask
            leaves nothing.
    """
    rows, columns = grid_size(student)
    name, embed = type(student).__name__, student.patch_embed
    if not isinstance(embed, PatchEmbed):  # a convolutional stem sees beyond the patch
        raise UserError(f"{name}: its patches overlap, so what is masked would show; a plain patch embedding is wanted")
    if not isinstance(getattr(student, "patch_drop", None), nn.Identity | None):
        raise UserError(f"{name}: patch_drop_rate drops patches that are to be predicted; leave it at 0")
    if any(side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)):
        raise UserError(
            f"{name}: {embed.img_size[0]} pixels are not a multiple of its patch size {embed.patch_size[0]}"
        )
    if num_masked is not None and not 0 < num_masked < rows * columns:
        raise UserError(
            f"mask_ratio masks {num_masked} of the student's {rows} x {columns} patches; some must be masked, some seen"
        )
    return rows, columns
