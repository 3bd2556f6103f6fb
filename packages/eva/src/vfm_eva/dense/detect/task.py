"""Detection as a task for `vfm.train.fit`, with layer-wise learning-rate decay."""

# B batch, S side of the input

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.models import vision_preprocess
from vfm.plugin import DenseCheckpoint
from vfm.train import Metrics, ParamGroup, Task
from vfm_eva.dense.detect.checkpoint import save_detector
from vfm_eva.dense.detect.federated import draw_order
from vfm_eva.dense.detect.model import Detector
from vfm_eva.dense.detect.predict import DetectPredictor
from vfm_eva.dense.detect.samples import DetectionInputs
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.finetune.classifier import layer_of, layered_groups
from vfm_kernels import Kernels, accelerated, padded

ENCODER = "model.encoder.visual."
RELATIVE = re.compile(r"model\.head\.relative\.(\d+)\.")


class DetectTask(Task[DetectionInputs]):
    """The sum of a detector's losses.

    Losses are divided by the boxes of a micro-batch, as in detectron2, so gradient accumulation averages them.

    Args:
        model: the detector.
        class_names: of the data.
        class_images: number of images with each class, for the federated loss; None: another loss.
        federated_power: exponent of these numbers, in the chances of negatives.
        layer_decay: learning rate of a layer as a factor of that of the layer after it.
        decay_vectors: decay biases, norms and positions too.
        freeze_patch_embed: do not train the patch embedding.
        seed: of the training, for the federated loss.

    Source: Li et al. 2022, ViTDet (arXiv:2203.16527), appendix A.2, for the groups of parameters.
    """

    def __init__(
        self,
        model: Detector,
        class_names: Sequence[str],
        *,
        class_images: NDArray[np.int64] | None = None,
        federated_power: float = 0.5,
        layer_decay: float = 1.0,
        decay_vectors: bool = True,
        freeze_patch_embed: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.class_names = model, list(class_names)
        self.layer_decay, self.decay_vectors, self.seed = layer_decay, decay_vectors, seed
        self.weights = None if class_images is None else class_images.astype(np.float64) ** federated_power
        if self.weights is not None and class_images is not None:
            self.weights[class_images == 0] = 0.0  # a class without images is no negative
        self.preprocess = vision_preprocess(model.encoder.visual)
        freeze_unused(model.encoder)
        if freeze_patch_embed:
            model.encoder.visual.patch_embed.requires_grad_(False)
        self.order: Tensor | None = None

    def forward(self, inputs: DetectionInputs) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch and its parts by name."""
        pixels = self.preprocess.pixels(inputs.images)
        order = None if self.order is None else self.order.to(pixels.device)
        losses = self.model.losses(pixels, inputs.truths(), inputs.shapes(), order)
        return torch.stack(list(losses.values())).sum(), losses

    def before_step(self, step: int) -> None:
        """Draw the order in which classes become negatives of the federated loss."""
        if self.weights is not None:
            self.order = draw_order(self.weights, self.seed, step)

    def parameter_groups(self) -> list[ParamGroup]:
        """Return one group per layer and per weight decay."""
        depth = self.model.encoder.depth

        def layer(name: str) -> int:
            if found := RELATIVE.match(name):
                return int(found[1]) + 1
            return layer_of(name.removeprefix(ENCODER), depth) if name.startswith(ENCODER) else depth + 1

        return layered_groups(self, depth, self.layer_decay, layer, decay_vectors=self.decay_vectors)

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the encoder."""
        return accelerated(choice, self)

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of the encoder."""
        return padded(self)

    def encoder(self) -> DetectPredictor:
        """Return the detector, for evaluations."""
        return DetectPredictor(self.model)

    def export(self, directory: Path) -> DenseCheckpoint:
        """Write encoder and head."""
        return save_detector(self.model, directory, self.class_names)


def freeze_unused(encoder: DenseEncoder) -> None:
    """Exclude from training what the maps do not depend on, such as a head, the final norm, a class token.

    It is found by a backward pass of one small image. All images take the same path.
    """
    used = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    if any(parameter.is_meta for parameter in used):
        return
    side = encoder.patch_size * (encoder.window or 1)
    image = torch.zeros(1, 3, side, side, device=used[0].device)
    was_training = encoder.training
    maps = encoder.eval()(image)
    encoder.train(was_training)
    found = torch.autograd.grad(torch.stack([one.sum() for one in maps]).sum(), used, allow_unused=True)
    for parameter, gradient in zip(used, found, strict=True):
        parameter.requires_grad_(gradient is not None)
