"""Masked feature modelling: the student sees visible patches and predicts the teacher's features of masked patches."""

# B batch, N patches, K masked patches at most, V visible patches, D student width, W decoder width, T target width,
# S side of the image

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfm.data import Batch
from vfm.models import PooledVision, has_patch_tokens, save_vision, vision_preprocess
from vfm.plugin import UserError, VisionCheckpoint
from vfm.train import Metrics, Task, relative_weights
from vfm_eva.pretrain.alarm import HeldOutAlarm
from vfm_eva.pretrain.objective import Objective, TeacherFeatures
from vfm_eva.pretrain.saved_heads import heads_of, load_added, saved_added
from vfm_eva.pretrain.students.decoder import MaskDecoder
from vfm_eva.pretrain.students.masking import check_class_token, masked, student_grid, visible_only
from vfm_eva.pretrain.students.networks import freeze_unused, map_tokens, target_grid
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.patch_target import PatchTarget
from vfm_kernels import Kernels, accelerated, gather_tokens, masked_index, padded, token_cosine

__all__ = ["EvaInputs", "EvaTask"]


@dataclass(frozen=True)
class TaskEncoder(PooledVision):
    """A student with its pooled features, and its task, whose head predicts masked patches."""

    task: EvaTask | None = None


class EvaTask(Task[EvaInputs]):
    """EVA's pre-training: the negative cosine between prediction and target on masked patches.

    The encoder takes all tokens, with a mask token for masked patches. With a `decoder` the encoder takes only visible
    patches, and the decoder predicts the others (EVA-L). Without masks it is distillation: every patch is predicted
    from the whole image, and the student may be any network, whose feature map is resized to the teacher's grid. For
    any masks, shapes are static and nothing synchronises with the device. With several teachers, each has its own head,
    and the loss is the weighted sum of their losses.

    Args:
        student: A timm vision transformer (`Eva` or `VisionTransformer`) of fixed image size, without a head. Without
            masks, any network of timm.
        teacher: Computes the target, and is neither trained nor saved. Or a list with an objective for each teacher.
        num_masked: K, the most patches that a mask hides. K patches go through the head, and visible patches among
            them do not count. Patches that a mask hides beyond K are left out of the loss. Default: all patches.
        decoder: For a student that encodes only visible patches. Masks must then hide exactly `num_masked` patches.
        patch_embed_grad: Factor on the patch embedding's gradient (EVA-02's `stop_grad_conv1`: 0.1).
        seed: Seed of the initial mask token and head.
        is_masked: False: masks are ignored, and every patch is predicted.

    Raises:
        UserError: If the student cannot be masked, `num_masked` leaves nothing, or the teacher has no such target.

    Source: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.1: negative cosine between the prediction and the CLIP
    feature of each masked patch, in fp32. There are two departures: the mask token is not decayed, and the loss of a
    step is the mean over all its masked patches, however it is cut into micro-batches and processes (`accumulate`).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: PatchTarget | Sequence[Objective],
        *,
        num_masked: int | None = None,
        decoder: MaskDecoder | None = None,
        patch_embed_grad: float = 1.0,
        seed: int = 0,
        is_masked: bool = True,
    ) -> None:
        super().__init__()
        self.student = student
        self.decoder = decoder
        self.is_masked = is_masked
        self.has_patches = has_patch_tokens(student)
        objectives = teacher if isinstance(teacher, Sequence) else [Objective(teacher)]
        self.objectives: Any = nn.ModuleList(objectives)
        if self.has_patches or is_masked:
            self.grid = student_grid(student, num_masked, visible_only=decoder is not None, is_masked=is_masked)
        else:
            self.grid = target_grid(self.teacher, student)
            freeze_unused(student, with_image=self.teaches_class_token)
        self.num_masked = num_masked or self.grid[0] * self.grid[1]
        self.preprocess = vision_preprocess(student)
        width: Any = decoder.width if decoder else student.num_features
        class_width: Any = student.num_features if self.has_patches else student.head_hidden_size
        # A vector, so that it is not decayed. Without masks nothing trains it, and DDP would wait for its gradient.
        self.mask_token = nn.Parameter(torch.zeros(width), requires_grad=is_masked)
        for objective in objectives:
            objective.add_heads(width, class_width)
        if self.teaches_class_token and self.has_patches:
            check_class_token(student)
        generator = torch.Generator().manual_seed(seed + 1)  # not `seed`, from which the student may be drawn
        # The usual standard deviation of tokens, which `student.init` may replace by a paper's.
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        for _, head in heads_of(self):
            nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
            nn.init.zeros_(head.bias)
        self.held_out_alarm = HeldOutAlarm()  # for `eval.masked_patches`, which runs several times during training
        pooling = getattr(student, "attn_pool", None)
        if pooling and self.has_patches:  # unused here, and DDP would wait for its gradient
            pooling.requires_grad_(False)
        if patch_embed_grad != 1:
            embedding: Any = getattr(student, "patch_embed", None)
            if embedding is None:
                raise UserError(f"student.patch_embed_grad: {type(student).__name__} has no patch embedding")
            embedding.register_forward_hook(partial(_scale_gradient, patch_embed_grad))

    @property
    def teacher(self) -> PatchTarget:
        """The first teacher."""
        teacher: PatchTarget = self.objectives[0].teacher
        return teacher

    @property
    def teaches_class_token(self) -> bool:
        """Whether a teacher teaches the class token."""
        return any(objective.class_weight for objective in self.objectives)

    def forward(self, inputs: EvaInputs) -> tuple[Tensor, Metrics]:
        """Compute the loss of a batch, and metrics.

        `masked_share` is the fraction of masked patches. At log steps, `constant_loss` is the loss of the best constant
        prediction and `mutual_cosine` the mean cosine of two predictions. With several losses, these two and the loss
        are reported for each teacher with its name as suffix, and `class_loss` is the loss of the class token.
        """
        bool_mask = inputs.bool_mask
        grid = self.grid_of(inputs.images)
        predicted = self._predicted(bool_mask, grid)
        num_predicted = self.num_masked if self.is_masked else grid[0] * grid[1]
        # As many rows as the mask may hide, whatever it hides, so that shapes are static. `counted` leaves out the
        # surplus.
        index = masked_index(predicted, num_predicted)  # (B, K)
        counted = predicted.gather(1, index)  # (B, K)
        # Run the teachers first: their temporary memory is free again before the student's activations are stored.
        targets = []
        for number, objective in enumerate(self.objectives):
            targets.append(objective.targets(inputs.of_teacher(number), grid, index))
        class_token, tokens = self.encode(inputs.images, bool_mask)
        return self.compared(gather_tokens(tokens, index), class_token, targets, counted, bool_mask)

    def compared(
        self,
        tokens: Tensor,
        class_token: Tensor | None,
        targets: Sequence[TeacherFeatures],
        counted: Tensor,
        bool_mask: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """Compute the loss and metrics of `forward` from the student's tokens, (B, K, D), and the targets."""
        metrics: Metrics = {"masked_share": bool_mask.float().mean()}
        losses = []
        for objective, target in zip(self.objectives, targets, strict=True):
            loss, parts = objective.compare(tokens, class_token, target, counted, log=self.is_log_step)
            if self.has_one_loss:
                del parts["loss"]
                return loss, {**metrics, **parts}
            for name, value in parts.items():
                metrics[f"{name}_{objective.name}"] = value
            losses.append(objective.weight * loss)
        return torch.stack(losses).sum(), metrics

    @property
    def has_one_loss(self) -> bool:
        """Whether the loss has a single teacher and covers only patches, as in EVA."""
        first = self.objectives[0]
        return len(self.objectives) == 1 and first.weight == 1 and not first.class_weight and not first.gram_weight

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Count the rows and columns of patches that are predicted for images of some size, (B, 3, S, S)."""
        if not self.has_patches:
            return self.grid
        rows, columns = (images.shape[-1] * patches // self.preprocess.image_size for patches in self.grid)
        return rows, columns

    def features_to_fit(self, inputs: EvaInputs, number: int) -> Tensor:
        """Compute a teacher's features of a batch to which statistics are fitted, (B, N, T)."""
        teacher: PatchTarget = self.objectives[number].teacher
        return teacher.features_to_fit(inputs.of_teacher(number), self.grid_of(inputs.images))

    def _predicted(self, bool_mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Select the patches that are predicted, (B, N): the masked ones, or all without masks."""
        if self.is_masked:
            return bool_mask
        return bool_mask.new_ones(len(bool_mask), grid[0] * grid[1])

    @torch.no_grad()
    def masked_cosines(self, inputs: EvaInputs, target: Tensor) -> Tensor:
        """Compute the mean cosine of each image's predicted patches, (B,). All masks must hide the same number."""
        bool_mask = inputs.bool_mask
        predicted = self._predicted(bool_mask, self.grid)
        prediction = self.predictions(self.student_tokens(inputs.images, bool_mask, int(bool_mask[0].sum())))
        return (token_cosine(prediction, target) * predicted).sum(dim=1) / predicted.sum(dim=1)

    def predictions(self, tokens: Tensor) -> Tensor:
        """Predict the features of the first teacher, (..., T), from the head's inputs."""
        predicted: Tensor = self.objectives[0].head(tokens)
        phi_s = self.objectives[0].phi_s
        return phi_s.inverse(predicted) if phi_s else predicted

    def student_tokens(self, images: Tensor, bool_mask: Tensor, num_masked: int | None = None) -> Tensor:
        """Compute the head's input for every patch: the encoder's tokens, (B, N, D), or the decoder's, (B, N, W).

        Args:
            images: (B, 3, S, S) uint8.
            bool_mask: (B, N), True = masked.
            num_masked: Number of patches that a mask hides, for a decoder. Default: the number used in training.
        """
        return self.encode(images, bool_mask, num_masked)[1]

    def encode(self, images: Tensor, bool_mask: Tensor, num_masked: int | None = None) -> tuple[Tensor | None, Tensor]:
        """Compute the normed class token, (B, D), if a teacher teaches it, and the tokens of `student_tokens`."""
        student: Any = self.student
        pixels = self.preprocess.pixels(images)
        if not self.has_patches:
            return map_tokens(student, pixels, self.grid_of(images), with_image=self.teaches_class_token)
        if self.decoder:
            num_visible = bool_mask.shape[1] - (num_masked or self.num_masked)
            index = masked_index(~bool_mask, num_visible)  # (B, V)
            with visible_only(student, index):
                tokens = student.forward_features(pixels)
            tokens = student.fc_norm(tokens)
            class_token = tokens[:, 0] if self.teaches_class_token else None
            return class_token, self.decoder(tokens, index, self.mask_token)
        with masked(student, self.mask_token, bool_mask) if self.is_masked else nullcontext():
            tokens = student.forward_features(pixels)
        class_token = student.fc_norm(tokens[:, 0]) if self.teaches_class_token else None
        return class_token, student.fc_norm(tokens[:, student.num_prefix_tokens :])

    def micro_batch_weights(self, micro_batches: Sequence[Batch[EvaInputs]]) -> Tensor | None:
        """Compute the masked patches per sample of each micro-batch, relative to the mean of the step.

        With these factors every masked patch of the step has the same weight in all processes. Loss and gradient then
        equal those for a single large batch (up to rounding and the draws of drop path), although `block` masks vary in
        size. EVA's code weights micro-batches and processes equally instead.
        """
        if not self.is_masked:
            return None
        # EVA's loss is a mean over the masked patches of the whole batch, so a micro-batch counts by its masked
        # patches.
        counts = []
        for batch in micro_batches:
            num_masked = batch.inputs.bool_mask.sum(dim=1)
            counts.append(num_masked.clamp(max=self.num_masked).sum())
        return relative_weights(torch.stack(counts).float(), micro_batches)

    @torch.no_grad()
    def cosine_map(self, inputs: EvaInputs) -> Tensor:
        """Compute the cosine between prediction and target of every patch, masked or not, (B, N)."""
        prediction = self.predictions(self.student_tokens(inputs.images, inputs.bool_mask))
        return token_cosine(prediction, self.teacher.targets(inputs, self.grid))

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in student and teacher."""
        return accelerated(choice, self, *(held.module for held in self.frozen()))

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of student and teacher."""
        return padded(self, *(held.module for held in self.frozen()))

    def encoder(self) -> TaskEncoder:
        """Wrap the student as an encoder of pooled features."""
        return TaskEncoder(self.student, self.preprocess, task=self)

    def masked_modelling(self) -> dict[str, Tensor]:
        """Collect the mask token, heads and decoder by name, as `saved_added` does."""
        return saved_added(self)

    def load_masked_modelling(self, added: Mapping[str, Tensor]) -> bool:
        """Load the mask token, head and decoder of an earlier run if all of them fit, and return whether they did."""
        return load_added(self, added)

    def export(self, directory: Path) -> VisionCheckpoint:
        """Write the student in timm's layout, and the mask token, head and decoder in a separate file."""
        self.student.masked_modelling = self.masked_modelling()  # type: ignore[assignment]
        return save_vision(self.student, directory)


def _scale_gradient(factor: float, module: nn.Module, inputs: Any, output: Tensor) -> None:
    """Scale the gradient that reaches a layer, and thereby the gradients of its weights (a forward hook).

    Hooks on the weights would be lost where FSDP replaces them.
    """
    if output.requires_grad:
        output.register_hook(lambda grad: grad * factor)  # type: ignore[no-untyped-call]
