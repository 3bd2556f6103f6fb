"""The target `codes`: the nearest of some centres of a teacher's features, which k-means finds before the training."""

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
from vfm_eva.targets.phi_s import Statistics
from vfm_eva.targets.teacher import PatchTarget, Teacher, features_of

ROUNDS = 20  # of k-means


class Codebook(Statistics):
    """Centres of features.

    Args:
        centres: (C, T).
    """

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres: Tensor
        self.register_buffer("centres", centres)

    def fitted(self, parts: Iterable[Tensor]) -> Codebook:
        """Return the centres that k-means (Lloyd) finds, from the first distinct features on.

        Raises:
            UserError: there are fewer different features than codes.
        """
        rows = torch.cat([part.flatten(0, -2).float().cpu() for part in parts])
        distinct, number = torch.unique(rows, dim=0), len(self.centres)
        if len(distinct) < number:
            raise UserError(f"target.num_codes: {number} codes need as many different patches, got {len(distinct)}")
        centres = distinct[torch.linspace(0, len(distinct) - 1, number).long()]
        for _ in range(ROUNDS):
            codes = torch.cdist(rows, centres).argmin(dim=1)
            counts = torch.bincount(codes, minlength=number)[:, None]
            sums = torch.zeros_like(centres).index_add(0, codes, rows)
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)  # an empty one stays
        return Codebook(centres)

    def forward(self, features: Tensor) -> Tensor:
        """Return the code of each of the features, (B, N), for (B, N, T)."""
        return torch.cdist(features.float(), self.centres.expand(len(features), -1, -1)).argmin(dim=-1)


class CodeTarget(PatchTarget):
    """Codes of a teacher's features, by cross-entropy."""

    is_cosine = False

    def __init__(self, teacher: Teacher, codebook: Codebook) -> None:
        super().__init__(nn.ModuleList([teacher.module, codebook]))
        self.teacher, self.statistics = teacher, codebook
        self.preprocess, self.width = teacher.preprocess, len(codebook.centres)

    @torch.no_grad()
    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Return the codes, int64 (B, N, 1)."""
        assert self.statistics
        codes: Tensor = self.statistics(self.teacher.targets(inputs, grid))
        return codes[..., None]

    def features_to_fit(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Return the teacher's features, (B, N, T)."""
        return self.teacher.targets(inputs, grid)

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Return the mean cross-entropy of the counted patches."""
        losses = F.cross_entropy(prediction.float().transpose(1, 2), target[..., 0], reduction="none")
        return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp(min=1)

    def constant_loss(self, target: Tensor, counted: Tensor) -> Tensor:
        """Return the entropy of the counted codes."""
        counts = (F.one_hot(target[..., 0], self.width) * counted[..., None]).sum(dim=(0, 1))
        entropy: Tensor = torch.special.entr(counts / counted.sum().clamp(min=1)).sum()
        return entropy


def codes_of(
    target: Codes, student: nn.Module, encoder: ClipModel | nn.Module, *, bf16: bool | None = None
) -> CodeTarget:
    """Return codes of an encoder's features, before their centres are fitted."""
    teacher = features_of(Features(layer=target.layer, projected=target.projected), student, encoder, bf16=bf16)
    return CodeTarget(teacher, Codebook(torch.zeros(target.num_codes, teacher.width)))
