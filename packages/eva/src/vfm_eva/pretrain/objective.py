"""Targets, loss and weight of one teacher of a student."""

# B batch, N patches, K masked patches at most, T width of the target

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vfm.train import Metrics
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.losses import gram_loss, mean_target, squared_error
from vfm_eva.targets.patch_target import PatchTarget
from vfm_eva.targets.phi_s import PhiS, Statistics
from vfm_eva.targets.teacher import Teacher
from vfm_kernels import gather_tokens, resultant_length, token_cosine


@dataclass(frozen=True)
class TeacherFeatures:
    """A teacher's features for a batch. The student predicts them."""

    patches: Tensor  # (B, K, T)
    image: Tensor | None = None  # (B, T)


class Objective(nn.Module):
    """The loss for a single teacher, with the heads that predict its features.

    Args:
        teacher: Computes the targets.
        weight: Weight of this teacher's loss.
        class_weight: Weight of the class token's loss relative to the masked patches. 0: it is not taught.
        gram_weight: Weight of the Gram anchor relative to the masked patches. 0: none.
        phi_s: Standardises the targets. The loss is then their squared error. None: the loss of the target.
        name: Suffix of its metrics' names if the student has several losses.

    Source: EVA (arXiv:2211.07636) for the cosine, AM-RADIO (arXiv:2312.06709) for several teachers with a head each and
    for the cosine loss of the image feature, PHI-S (arXiv:2410.01680) for the squared error.
    """

    head: nn.Linear
    class_head: nn.Linear | None

    def __init__(
        self,
        teacher: PatchTarget,
        weight: float = 1.0,
        class_weight: float = 0.0,
        phi_s: PhiS | None = None,
        name: str = "",
        gram_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.weight = weight
        self.class_weight = class_weight
        self.gram_weight = gram_weight
        self.name = name
        self.phi_s = phi_s

    def add_heads(self, width: int, class_width: int) -> None:
        """Add a head for patches and, if the class token is taught, a head for it, with these input widths."""
        self.head = nn.Linear(width, self.teacher.width)
        self.class_head = nn.Linear(class_width, self.teacher.width) if self.class_weight else None

    @property
    def statistics(self) -> Statistics | None:
        """Statistics to fit to features before training starts."""
        return self.phi_s or self.teacher.statistics

    @property
    def is_cosine(self) -> bool:
        """Whether the loss of patches is a negative cosine."""
        return self.phi_s is None and self.teacher.is_cosine

    def targets(self, inputs: EvaInputs, grid: tuple[int, int], index: Tensor) -> TeacherFeatures:
        """Compute the targets of a batch.

        Args:
            inputs: Inputs of the batch.
            grid: Rows and columns of the student's patches.
            index: Patches whose targets are needed, (B, K).
        """
        if self.class_weight:
            assert isinstance(self.teacher, Teacher)
            patches, image = self.teacher.patches_and_image(inputs, grid)
            return TeacherFeatures(gather_tokens(patches, index), image)
        return TeacherFeatures(gather_tokens(self.teacher.targets(inputs, grid), index))

    def standardised(self, target: Tensor) -> Tensor:
        """Standardise targets, (..., T), if the loss compares them so."""
        if self.phi_s is None:
            return target
        device = "cpu" if target.is_meta else target.device.type  # torch has no autocast for the meta device
        with torch.autocast(device, enabled=False):  # autocast would round the matrix product to bf16
            standardised: Tensor = self.phi_s(target)
        return standardised

    def compare(
        self, tokens: Tensor, class_token: Tensor | None, target: TeacherFeatures, counted: Tensor, *, log: bool
    ) -> tuple[Tensor, Metrics]:
        """Compute the loss of a batch, and its parts with further metrics if they are logged.

        Args:
            tokens: The student's patch tokens, (B, K, D).
            class_token: The student's class token, (B, D), if it is taught.
            target: What the student predicts.
            counted: (B, K) booleans.
            log: Compute metrics beside the losses.
        """
        compared = (self.head(tokens), self.standardised(target.patches), counted)
        total = self.patch_loss(*compared)
        parts = {"loss": total}
        if log:
            parts |= self.metrics(*compared)
        if target.image is not None and self.class_head is not None:
            parts["class_loss"] = image_loss(self.class_head(class_token), target.image, counted)
            total = total + self.class_weight * parts["class_loss"]
        if self.gram_weight:
            parts["gram_loss"] = gram_loss(tokens, target.patches, counted)
            total = total + self.gram_weight * parts["gram_loss"]
        return total, parts

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Compute the mean loss over the counted patches.

        Args:
            prediction: As in `PatchTarget.patch_loss`.
            target: As in `PatchTarget.patch_loss`.
            counted: As in `PatchTarget.patch_loss`.
        """
        compare = self.teacher.patch_loss if self.phi_s is None else squared_error
        return compare(prediction, target, counted)

    def metrics(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Metrics:
        """Compute further metrics, as `PatchTarget.metrics` does."""
        if self.phi_s is None:
            return self.teacher.metrics(prediction, target, counted)
        mutual = resultant_length(prediction.detach(), counted) ** 2
        return {
            "constant_loss": squared_error(mean_target(target, counted), target, counted),
            "mutual_cosine": mutual,
        }


def image_loss(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Compute the negative cosine of image features, weighted by the number of counted patches of each image.

    With these weights the loss of a step does not depend on how it is cut into micro-batches, like the patch loss.

    Args:
        prediction: (B, T).
        target: (B, T).
        counted: (B, K) booleans.
    """
    counts = counted.sum(dim=1)
    return -(token_cosine(prediction, target) * counts).sum() / counts.sum().clamp(min=1)
