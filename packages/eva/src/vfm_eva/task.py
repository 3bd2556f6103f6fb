"""Masked feature modelling: the student sees the visible patches and predicts the teacher's features of the masked."""

# B batch, N patches, K masked patches at most, V visible patches, D student width, W decoder width, T target width,
# S side of the image

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfm.models import PooledVision, save_vision, vision_preprocess
from vfm.plugin import VisionCheckpoint
from vfm.train import Batch, Metrics, Task
from vfm_eva.decoder import MaskDecoder
from vfm_eva.images import EvaInputs
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

__all__ = ["EvaInputs", "EvaTask"]


@dataclass(frozen=True)
class TaskEncoder(PooledVision):
    """The student of a training with its pooled features, and the task, whose head predicts masked patches."""

    task: EvaTask | None = None


class EvaTask(Task[EvaInputs]):
    """EVA's pre-training: the negative cosine between prediction and target, on masked patches.

    All tokens go through the encoder, masked patches as a mask token. With a `decoder` only visible patches do, and it
    predicts the others (EVA-L). Shapes are static and nothing synchronises with the device, whatever the masks.

    Args:
        student: a timm vision transformer (`Eva` or `VisionTransformer`) of fixed image size, without a head.
        teacher: makes the target; frozen, and neither trained nor saved.
        num_masked: K, the most patches that a mask hides. K patches go through the head; those that the mask does not
            hide do not count. Patches that a mask hides beyond K are left out of the loss. Default: all patches.
        decoder: for a student of visible patches; masks must then hide exactly `num_masked` patches.
        patch_embed_grad: factor of the patch embedding's gradient (EVA-02's `stop_grad_conv1`: 0.1).
        seed: of the mask token and the head.

    Raises:
        UserError: the student cannot be masked, `num_masked` leaves nothing, or the teacher has no such target.

    Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.1: negative cosine between the prediction and the CLIP
    feature of each masked patch, in fp32. Two departures: the mask token is not decayed, and the loss of a step is the
    mean over all its masked patches, however it is cut into micro-batches and processes (`accumulate`).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | StoredTargets,
        *,
        num_masked: int | None = None,
        decoder: MaskDecoder | None = None,
        patch_embed_grad: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.grid = student_grid(student, num_masked, visible_only=decoder is not None)
        self.num_masked = num_masked or self.grid[0] * self.grid[1]
        self.student, self.teacher, self.decoder = student, teacher, decoder
        self.preprocess = vision_preprocess(student)
        width: Any = decoder.width if decoder else student.num_features
        self.mask_token = nn.Parameter(torch.zeros(width))  # a vector, so that it is not decayed
        self.head = nn.Linear(width, teacher.width)
        generator = torch.Generator().manual_seed(seed + 1)  # not `seed`, from which the student may be drawn
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.best_held_out, self.held_out_warned = -1.0, False  # of `eval.masked_patches`
        if pooling := getattr(student, "attn_pool", None):  # not used here, and DDP would wait for its gradient
            pooling.requires_grad_(False)
        if patch_embed_grad != 1:
            embedding: Any = student.patch_embed
            for parameter in embedding.parameters():
                parameter.register_hook(lambda grad: grad * patch_embed_grad)

    def forward(self, inputs: EvaInputs) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch and metrics.

        `masked_share` is the fraction of masked patches, `constant_loss` the loss of the best constant prediction,
        `mutual_cosine` the mean cosine of two predictions.
        """
        bool_mask = inputs.bool_mask
        index = masked_index(bool_mask, self.num_masked)  # (B, K)
        # The teacher first: its temporary memory is free again before the student's activations are kept.
        target = gather_tokens(self.teacher.targets(inputs, self.grid), index)  # (B, K, T)
        prediction = self.head(gather_tokens(self.student_tokens(inputs.images, bool_mask), index))
        counted = bool_mask.gather(1, index)
        loss = masked_cosine_loss(prediction, target, counted)
        return loss, {
            "masked_share": bool_mask.float().mean(),
            "constant_loss": -resultant_length(target, counted),
            "mutual_cosine": resultant_length(prediction.detach(), counted) ** 2,
        }

    @torch.no_grad()
    def masked_cosines(self, inputs: EvaInputs, target: Tensor) -> Tensor:
        """Return the mean cosine of each image's masked patches, (B,); all masks hide equally many."""
        bool_mask = inputs.bool_mask
        num_masked = int(bool_mask[0].sum())
        prediction = self.head(self.student_tokens(inputs.images, bool_mask, num_masked))
        return (token_cosine(prediction, target) * bool_mask).sum(dim=1) / num_masked

    def student_tokens(self, images: Tensor, bool_mask: Tensor, num_masked: int | None = None) -> Tensor:
        """Return the head's input for every patch: the encoder's tokens, (B, N, D), or the decoder's, (B, N, W).

        Args:
            images: (B, 3, S, S) uint8.
            bool_mask: (B, N), True = masked.
            num_masked: patches that a mask hides, for a decoder; default: those of the training.
        """
        student: Any = self.student
        pixels = self.preprocess.pixels(images)
        if self.decoder:
            num_visible = bool_mask.shape[1] - (num_masked or self.num_masked)
            index = masked_index(~bool_mask, num_visible)  # (B, V)
            with visible_only(student, index):
                tokens = student.forward_features(pixels)
            decoded: Tensor = self.decoder(student.fc_norm(tokens), index, self.mask_token)
            return decoded
        with masked(student, self.mask_token, bool_mask):
            tokens = student.forward_features(pixels)
        patch_tokens: Tensor = student.fc_norm(tokens[:, student.num_prefix_tokens :])
        return patch_tokens

    def micro_batch_weights(self, micro_batches: Sequence[Batch[EvaInputs]]) -> Tensor:
        """Return the masked patches per sample of each micro-batch, relative to the mean of the step.

        With these factors every masked patch of the step has the same weight in all processes, so that loss and
        gradient are those of one large batch (to rounding, and except for the draws of drop path), although `block`
        masks vary in size. EVA's code gives micro-batches and processes equal weights instead.
        """
        counts = torch.stack(
            [batch.inputs.bool_mask.sum(dim=1).clamp(max=self.num_masked).float().mean() for batch in micro_batches]
        )
        sizes = [len(batch) for batch in micro_batches]
        mean = torch.stack([count * size for count, size in zip(counts, sizes, strict=True)]).sum() / sum(sizes)
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        return counts / mean.clamp(min=1e-9)

    @torch.no_grad()
    def cosine_map(self, inputs: EvaInputs) -> Tensor:
        """Return the cosine between prediction and target of every patch, (B, N), masked or not."""
        prediction = self.head(self.student_tokens(inputs.images, inputs.bool_mask))
        return token_cosine(prediction, self.teacher.targets(inputs, self.grid))

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in student and teacher."""
        return accelerated(choice, self, *(held.module for held in self.frozen()))

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of student and teacher."""
        return padded(self, *(held.module for held in self.frozen()))

    def encoder(self) -> TaskEncoder:
        """Return the student with its pooled features."""
        return TaskEncoder(self.student, self.preprocess, task=self)

    def masked_modelling(self) -> dict[str, Tensor]:
        """Return the mask token, the head and the decoder by name."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("student.")}

    def load_masked_modelling(self, added: Mapping[str, Tensor]) -> bool:
        """Load the mask token, head and decoder of an earlier training if all of them fit; return whether they did."""
        own = self.masked_modelling()
        fits = own.keys() == added.keys() and all(own[key].shape == value.shape for key, value in added.items())
        if fits:
            self.load_state_dict(dict(added), strict=False)
        return fits

    def export(self, directory: Path) -> VisionCheckpoint:
        """Write the student in timm's layout, and mask token, head and decoder in a file of their own."""
        self.student.masked_modelling = self.masked_modelling()  # type: ignore[assignment]
        return save_vision(self.student, directory)
