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
from vfm.plugin import AllWeights, DenseCheckpoint, Trained
from vfm.train import Metrics, Task, freeze_unused, prepare_towers
from vfm_eva.dense.detect.checkpoint import save_detector
from vfm_eva.dense.detect.federated import draw_order
from vfm_eva.dense.detect.model import Detector
from vfm_eva.dense.detect.predict import DetectPredictor
from vfm_eva.dense.detect.samples import DetectionInputs
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.finetune.classifier import encoder_tower, layer_of
from vfm_kernels import Kernels, accelerated, padded

ENCODER = "encoder.visual."
RELATIVE = re.compile(r"head\.relative\.(\d+)\.")


class DetectTask(Task[DetectionInputs]):
    """Trains a detector with the sum of its losses.

    Losses are divided by the number of boxes of a micro-batch, as in detectron2, so gradient accumulation averages
    them.

    Args:
        model: The detector.
        class_names: Class names of the data.
        class_images: Number of images with each class, for the federated loss. None: another loss.
        federated_power: Negatives are drawn in proportion to these numbers to this power.
        trained: Trainable weights of the encoder.
        decay_vectors: Decay biases, norms and positions too.
        seed: Seed of the training run, for the federated loss.

    Source: Li et al. 2022, ViTDet (arXiv:2203.16527), appendix A.2, for the groups of parameters.
    """

    def __init__(
        self,
        model: Detector,
        class_names: Sequence[str],
        *,
        class_images: NDArray[np.int64] | None = None,
        federated_power: float = 0.5,
        trained: Trained = AllWeights(),  # noqa: B008 (frozen)
        decay_vectors: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.class_names = list(class_names)
        self.decay_vectors = decay_vectors
        self.seed = seed
        self.weights = None if class_images is None else class_images.astype(np.float64) ** federated_power
        if self.weights is not None and class_images is not None:
            self.weights[class_images == 0] = 0.0  # never draw a class without images as negative
        self.preprocess = vision_preprocess(model.encoder.visual)
        relative = [name for name, _ in model.named_parameters() if RELATIVE.match(name)]
        self.towers = [encoder_tower(trained, model, "encoder.visual.blocks", _layer, new=relative)]
        self.merge = prepare_towers(self.towers, seed=seed)
        freeze_unread(model.encoder)
        self.order: Tensor | None = None

    def forward(self, inputs: DetectionInputs) -> tuple[Tensor, Metrics]:
        """Compute the loss of a batch, and its parts by name."""
        pixels = self.preprocess.pixels(inputs.images)
        order = None if self.order is None else self.order.to(pixels.device)
        losses = self.model.losses(pixels, inputs.truths(), inputs.shapes(), order)
        return torch.stack(list(losses.values())).sum(), losses

    def before_step(self, step: int) -> None:
        """Draw the order in which classes become negatives of the federated loss."""
        if self.weights is not None:
            self.order = draw_order(self.weights, self.seed, step)

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the encoder."""
        return accelerated(choice, self)

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of the encoder."""
        return padded(self)

    def encoder(self) -> DetectPredictor:
        """Wrap the detector as a predictor for evaluations."""
        return DetectPredictor(self.model)

    def export(self, directory: Path) -> DenseCheckpoint:
        """Write encoder and head, with LoRA weights merged."""
        self.merge()
        return save_detector(self.model, directory, self.class_names)


def freeze_unread(encoder: DenseEncoder) -> None:
    """Freeze parameters that do not affect the maps, such as a head, the final norm or a class token.

    A backward pass of a small image finds them, since all images take the same path.
    """
    first = next(encoder.parameters())
    if first.is_meta:
        return
    side = encoder.patch_size * (encoder.window or 1)
    # Weights without a gradient after a pass over any image are not read. The smallest image is enough.
    image = torch.zeros(1, 3, side, side, device=first.device)
    was_training = encoder.training
    freeze_unused(encoder.eval(), lambda: list(encoder(image)))
    encoder.train(was_training)


def _layer(name: str) -> int | None:
    """Find the layer of an encoder weight or of a block's relative positions.

    The rest of the head has no layer.
    """
    relative = RELATIVE.match(name)
    if relative:
        return int(relative[1]) + 1
    if not name.startswith(ENCODER):
        return None
    return layer_of(name.removeprefix(ENCODER))
