"""Compute the teacher's features of the next image in the micro-batch as the target of each image.

The last image gets the features of the first. Batches are shuffled, so the next image is a random one, and no image
gets its own features.
"""

from torch import Tensor, nn
from vfm_permuted import Permuted

from vfm.models import ClipModel
from vfm.plugin import UserError
from vfm_eva import Features
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.patch_target import PatchTarget
from vfm_eva.targets.teacher import features_of


class PermutedTarget(PatchTarget):
    def __init__(
        self, config: Permuted, student: nn.Module, encoder: ClipModel | nn.Module, *, bf16: bool | None = None
    ) -> None:
        features = Features(layer=config.layer, projected=config.projected)
        self.teacher = features_of(features, student, encoder, bf16=bf16)
        super().__init__(self.teacher.module)
        self.width, self.preprocess, self.grid = self.teacher.width, self.teacher.preprocess, self.teacher.grid

    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        features = self.teacher.targets(inputs, grid)  # (B, N, T), interpolated to the student's grid
        if len(features) == 1 and not features.is_meta:  # `vfm plan` uses one image without pixels
            raise UserError("target: permuted: expected two or more images in a micro-batch, got 1")
        return features.roll(-1, dims=0)
