"""Code each patch feature as its nearest k-means centre. The centres are fitted before training starts."""

# B batch, N patches, K masked patches at most, T width of the features, C codes

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import ClipModel
from vfm.plugin import UserError
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.parts import Codes, Features
from vfm_eva.targets.patch_target import PatchTarget
from vfm_eva.targets.phi_s import Statistics
from vfm_eva.targets.teacher import Teacher, features_of

ROUNDS = 20  # k-means iterations


class Codebook(Statistics):
    """K-means centres of features.

    Args:
        centres: One centre per code, (C, T).
    """

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres: Tensor
        self.register_buffer("centres", centres)

    def fitted(self, parts: Iterable[Tensor]) -> Codebook:
        """Fit the centres by k-means (Lloyd), initialized from evenly spaced distinct features.

        Raises:
            UserError: If there are fewer distinct features than codes.
        """
        # On the CPU, where the order of additions is fixed, so that all processes find the same centres.
        rows = torch.cat([part.flatten(0, -2).float().cpu() for part in parts])
        distinct = torch.unique(rows, dim=0)
        num_codes = len(self.centres)
        if len(distinct) < num_codes:
            raise UserError(f"target.num_codes: {num_codes} codes need as many different patches, got {len(distinct)}")
        # `unique` sorts, so evenly spaced rows are far apart, and the result depends on no generator.
        centres = distinct[torch.linspace(0, len(distinct) - 1, num_codes).long()]  # (C, T)
        for _ in range(ROUNDS):
            codes = torch.cdist(rows, centres).argmin(dim=1)
            counts = torch.bincount(codes, minlength=num_codes)[:, None]
            sums = torch.zeros_like(centres).index_add(0, codes, rows)  # (C, T)
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)  # an empty cluster keeps its centre
        return Codebook(centres)

    def forward(self, features: Tensor) -> Tensor:
        """Look up the nearest centre of each feature, (B, N, T) to (B, N)."""
        return torch.cdist(features.float(), self.centres.expand(len(features), -1, -1)).argmin(dim=-1)


class CodeTarget(PatchTarget):
    """Codes of a teacher's features, predicted with a cross-entropy loss."""

    is_cosine = False

    def __init__(self, teacher: Teacher, codebook: Codebook) -> None:
        super().__init__(nn.ModuleList([teacher.module, codebook]))
        self.teacher = teacher
        self.statistics = codebook
        self.preprocess = teacher.preprocess
        self.grid = teacher.grid
        self.width = len(codebook.centres)

    @torch.no_grad()
    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Compute the codes, int64 (B, N, 1)."""
        assert self.statistics
        codes: Tensor = self.statistics(self.teacher.targets(inputs, grid))
        return codes[..., None]

    def features_to_fit(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Compute the teacher's features, to which the centres are fitted, (B, N, T)."""
        return self.teacher.targets(inputs, grid)

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Compute the mean cross-entropy over the counted patches."""
        losses = F.cross_entropy(prediction.float().transpose(1, 2), target[..., 0], reduction="none")
        return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp(min=1)

    def constant_loss(self, target: Tensor, counted: Tensor) -> Tensor:
        """Compute the entropy of the counted codes, the loss of the best constant prediction."""
        counts = (F.one_hot(target[..., 0], self.width) * counted[..., None]).sum(dim=(0, 1))
        entropy: Tensor = torch.special.entr(counts / counted.sum().clamp(min=1)).sum()
        return entropy


def codes_of(
    target: Codes, student: nn.Module, encoder: ClipModel | nn.Module, *, bf16: bool | None = None
) -> CodeTarget:
    """Build the target for codes of an encoder's features. Its centres are fitted later.

    Args:
        target: Settings of the codes.
        student: The student, for its grid of patches.
        encoder: Encoder whose features are clustered.
        bf16: See `Teacher`.
    """
    teacher = features_of(Features(layer=target.layer, projected=target.projected), student, encoder, bf16=bf16)
    return CodeTarget(teacher, Codebook(torch.zeros(target.num_codes, teacher.width)))
