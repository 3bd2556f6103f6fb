"""One teacher's part of a student's loss: its targets, how predictions are compared with them, and its weight."""

# B batch, N patches, K masked patches at most, T width of the target

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vfm.train import Metrics
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.phi_s import PhiS
from vfm_eva.targets.teacher import StoredTargets, Teacher
from vfm_kernels import gather_tokens, masked_cosine_loss, resultant_length, token_cosine


@dataclass(frozen=True)
class Targets:
    """A teacher's features of a batch."""

    patches: Tensor  # (B, K, T)
    image: Tensor | None = None  # (B, T)


@dataclass(frozen=True)
class Objective:
    """What a student learns from one teacher.

    Attributes:
        teacher: makes the targets.
        weight: of this teacher's loss.
        class_weight: weight of the class token's loss relative to the masked patches; 0: it is not taught.
        phi_s: standardises the targets, whose squared error is then the loss; None: the negative cosine is (EVA).
        name: ends the names of its metrics if the student has several losses.

    Source: EVA (arXiv:2211.07636) for the cosine; AM-RADIO (arXiv:2312.06709) for several teachers with a head each and
    for the summary, whose loss is the cosine; PHI-S (arXiv:2410.01680) for the squared error.
    """

    teacher: Teacher | StoredTargets
    weight: float = 1.0
    class_weight: float = 0.0
    phi_s: PhiS | None = None
    name: str = ""

    def targets(self, inputs: EvaInputs, grid: tuple[int, int], index: Tensor) -> Targets:
        """Return the targets of a batch at `index`, (B, K)."""
        if self.class_weight:
            assert isinstance(self.teacher, Teacher)
            patches, image = self.teacher.patches_and_image(inputs, grid)
            return Targets(gather_tokens(patches, index), image)
        return Targets(gather_tokens(self.teacher.targets(inputs, grid), index))

    def standardised(self, target: Tensor) -> Tensor:
        """Return targets, (..., T), as the loss compares them."""
        if self.phi_s is None:
            return target
        device = "cpu" if target.is_meta else target.device.type  # torch has no autocast of shapes alone
        with torch.autocast(device, enabled=False):  # a matrix product, which autocast would round to bf16
            standardised: Tensor = self.phi_s(target)
        return standardised

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Return the mean loss over the counted patches.

        Args:
            prediction: (B, K, T).
            target: (B, K, T), `standardised`.
            counted: (B, K) booleans.
        """
        compare = masked_cosine_loss if self.phi_s is None else squared_error
        return compare(prediction, target, counted)

    def metrics(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Metrics:
        """Return metrics beside the loss, for the arguments of `patch_loss`; each is a pass over all features.

        `constant_loss` is the loss of the best constant prediction, `mutual_cosine` the mean cosine of two predictions.
        """
        mutual = resultant_length(prediction.detach(), counted) ** 2
        if self.phi_s is None:
            return {"constant_loss": -resultant_length(target, counted), "mutual_cosine": mutual}
        mean = (target * counted[..., None]).sum(dim=(0, 1)) / counted.sum().clamp(min=1)  # (T,)
        return {"constant_loss": squared_error(mean.expand_as(target), target, counted), "mutual_cosine": mutual}


def squared_error(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Return the squared error, in fp32, of the counted tokens, a mean over these and the channels."""
    error = (prediction.float() - target.float()).square().mean(dim=-1)  # (B, K)
    return torch.where(counted, error, 0.0).sum() / counted.sum().clamp(min=1)


def image_loss(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Return the negative cosine of the images' features; an image weighs as many patches as are counted in it.

    So the loss of a step does not depend on how it is cut into micro-batches, as that of the patches.

    Args:
        prediction: (B, T).
        target: (B, T).
        counted: (B, K) booleans.
    """
    counts = counted.sum(dim=1)
    return -(token_cosine(prediction, target) * counts).sum() / counts.sum().clamp(min=1)
