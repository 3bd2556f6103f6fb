"""Masked feature modelling: the student sees what is left and predicts the teacher's features of what is masked."""

# B batch, N patches, K masked patches at most, V visible patches, D student width, W decoder width, T target width,
# S side of the image

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfm.artifacts import VisionCheckpoint
from vfm.eval.encode import PooledVision
from vfm.models.vision import save_vision, vision_preprocess
from vfm.train import Batch, Call, Metrics, Task
from vfm_eva.decoder import Decoder
from vfm_eva.student import masked, student_grid, visible_only
from vfm_eva.teacher import StoredTargets, Teacher
from vfm_kernels import (
    Kernels,
    accelerated,
    gather_tokens,
    masked_cosine_loss,
    masked_index,
    padded,
    resultant_length,
    token_cosine,
)


class EvaTask(Task):
    """EVA's pre-training: the negative cosine between prediction and target, on masked patches alone.

    All tokens go through the encoder, masked patches as a mask token; with a `decoder` visible patches alone do, and it
    predicts the others (EVA-L).

    A batch holds `images` (B, 3, S, S) uint8, `bool_mask` (B, N) with True = masked and, for a teacher of another
    size, `teacher_images` (B, 3, S', S') uint8; where there is no teacher, `targets`. Shapes are static and nothing
    waits for the device, whatever the masks.

    Args:
        student: a timm vision transformer (`Eva` or `VisionTransformer`) of fixed image size, without a head.
        teacher: gives the target; held frozen, outside what is trained and saved.
        num_masked: the most patches that a mask hides (K): so many go through the head, those that the mask does not
            hide count for nothing. What a mask hides beyond it is left out of the loss. Default: all patches.
        decoder: for a student of visible patches alone; masks must then hide exactly `num_masked` patches.
        patch_embed_grad: share of its gradient that the patch embedding takes (EVA-02's `stop_grad_conv1`: 0.1).
        seed: draws the mask token and the head.

    Raises:
        UserError: the student cannot be masked, `num_masked` leaves nothing, or the teacher has no such target.

    Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.1: negative cosine between the prediction and the CLIP
    feature of each masked patch, in fp32. It departs in two points: the mask token is not decayed, and the loss of a
    step is the mean over all its masked patches, however it is cut into micro-batches and processes (`accumulate`).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | StoredTargets,
        *,
        num_masked: int | None = None,
        decoder: Decoder | None = None,
        patch_embed_grad: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.grid = student_grid(student, num_masked)
        self.num_masked = num_masked or self.grid[0] * self.grid[1]
        self.student, self.teacher, self.decoder = student, teacher, decoder
        self.preprocess = vision_preprocess(student)
        width: Any = decoder.width if decoder else student.num_features
        self.mask_token = nn.Parameter(torch.zeros(width))  # a vector, so that it is not decayed
        self.head = nn.Linear(width, teacher.width)
        generator = torch.Generator().manual_seed(seed + 1)  # the student may well be drawn from `seed`
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        if pooling := getattr(student, "attn_pool", None):  # patches never meet it, and DDP would wait for its gradient
            pooling.requires_grad_(False)
        if patch_embed_grad != 1:
            embedding: Any = student.patch_embed
            for parameter in embedding.parameters():
                parameter.register_hook(lambda grad: grad * patch_embed_grad)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of a batch, the share of the patches that is masked, and how much targets and predictions vary.

        `constant_loss` is what the best constant guess would get, `mutual_cosine` that of predictions with one another.
        """
        bool_mask = batch["bool_mask"]
        index = masked_index(bool_mask, self.num_masked)  # (B, K)
        # The teacher first: what it needs on the way is free again before the student's activations are kept.
        target = gather_tokens(self.teacher.of(batch, self.grid), index)
        prediction = self.head(gather_tokens(self.student_tokens(batch["images"], bool_mask), index))
        counted = bool_mask.gather(1, index)
        loss = masked_cosine_loss(prediction, target, counted)
        return loss, {
            "masked_share": bool_mask.float().mean(),
            "constant_loss": -resultant_length(target, counted),
            "mutual_cosine": resultant_length(prediction.detach(), counted) ** 2,
        }

    def student_tokens(self, images: Tensor, bool_mask: Tensor) -> Tensor:
        """What the head reads of every patch: the encoder's last tokens after its norm, (B, N, D); with a decoder its
        own, (B, N, W).
        """
        student: Any = self.student
        pixels = self.preprocess.pixels(images)
        if self.decoder:
            index = masked_index(~bool_mask, bool_mask.shape[1] - self.num_masked)  # (B, V)
            with visible_only(student, index):
                tokens = student.forward_features(pixels)
            decoded: Tensor = self.decoder(student.fc_norm(tokens), index, self.mask_token)
            return decoded
        with masked(student, self.mask_token, bool_mask):
            tokens = student.forward_features(pixels)
        patch_tokens: Tensor = student.fc_norm(tokens[:, student.num_prefix_tokens :])
        return patch_tokens

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """The mean over the masked patches of the whole step, in all processes: every masked patch weighs the same.

        So loss and gradient of a step are those of one big batch (to rounding, and but for the draws of drop path),
        though `block` masks hide now more, now fewer. EVA's code weighs its micro-batches and processes alike instead.
        """
        counts = torch.stack(
            [batch["bool_mask"].sum(dim=1).clamp(max=self.num_masked).float().mean() for batch in micro_batches]
        )
        sizes = counts.new_tensor([len(batch["keys"]) for batch in micro_batches])
        mean = (counts * sizes).sum() / sizes.sum()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        # Masked patches a sample, here against in the step; `Task.accumulate` weighs by the number of samples.
        weights = iter(counts / mean.clamp(min=1e-9))

        def weighted(batch: Batch) -> tuple[Tensor, Metrics]:
            loss, metrics = call(batch)
            return loss * next(weights), metrics

        return super().accumulate(weighted, micro_batches, backward, reseed)

    @torch.no_grad()
    def cosine_map(self, batch: Batch) -> Tensor:
        """How well each patch's feature is predicted, (B, N) cosines, masked or not."""
        prediction = self.head(self.student_tokens(batch["images"], batch["bool_mask"]))
        return token_cosine(prediction, self.teacher.of(batch, self.grid))

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """In student and teacher."""
        return accelerated(choice, self, *(held.module for held in self.frozen()))

    def padded(self) -> AbstractContextManager[str]:
        """In student and teacher."""
        return padded(self, *(held.module for held in self.frozen()))

    def encoder(self) -> PooledVision:
        """The student with its pooled features."""
        return PooledVision(self.student, self.preprocess)

    def export(self, directory: Path) -> VisionCheckpoint:
        """The student in timm's layout; mask token, head and decoder were for pre-training only."""
        return save_vision(self.student, directory)
