"""Fine-tuning for classification with layer-wise learning-rate decay, as a task for `vfm.train.fit`."""

# B batch, C classes, L blocks, S side of the image

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.data import Batch
from vfm.models import PooledVision, save_vision, vision_preprocess
from vfm.plugin import AllWeights, Trained, VisionCheckpoint
from vfm.train import Call, Metrics, Task, TrainedTower, prepare_towers, relative_weights
from vfm_eva.finetune.labeled_images import LabeledImages, erase
from vfm_eva.finetune.mixing import StepMix
from vfm_eva.finetune.normed_head import NormedHead
from vfm_kernels import Kernels, accelerated, padded

__all__ = ["Classifier", "LabeledImages", "encoder_tower", "layer_of"]

AFTER_THE_BLOCKS = sys.maxsize  # larger than any number of blocks
BEFORE_THE_BLOCKS = (
    *("cls_token", "dist_token", "reg_token", "mask_token", "pos_embed", "patch_embed", "norm_pre"),
    "embeds.",  # NaFlex's stem
)


class Classifier(Task[LabeledImages]):
    """Classification with layer decay.

    The loss is cross-entropy, or binary cross-entropy for several labels per image.

    Args:
        model: A timm vision transformer with a head.
        trained: Trainable weights of the encoder. The head and a new norm before it are always trained.
        label_smoothing: Share of the target spread evenly over all classes.
        mixup: alpha of mixup. 0: none.
        cutmix: alpha of CutMix. 0: none.
        erasing: Probability that a rectangle of an image becomes noise.
        batch_norm: Put a batch norm without parameters before the head, over all samples of a step.
        seed: Seed of mixing and of LoRA's initial weights.

    Sources: Bao et al. 2021, BEiT (arXiv:2106.08254) for layer decay. Zhang et al. 2017 (arXiv:1710.09412) and Yun et
    al. 2019 (arXiv:1905.04899) for mixing, as in timm but drawn once per step. Zhong et al. 2017 (arXiv:1708.04896) for
    erasing, as in timm but drawn from the seed of each sample. Fang et al. 2022 (arXiv:2211.07636) for the batch norm
    of a linear probe.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        trained: Trained = AllWeights(),  # noqa: B008 (frozen)
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erasing: float = 0.0,
        batch_norm: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.preprocess = vision_preprocess(model)
        self.mix = None
        if mixup or cutmix:
            self.mix = StepMix(mixup, cutmix, label_smoothing, model.num_classes, seed)  # type: ignore[arg-type]
        self.erase = RandomErasing(erasing, mode="pixel", device="cpu") if erasing else None
        if batch_norm:
            model.head = NormedHead(model.head)  # type: ignore[arg-type]
        self.towers = [encoder_tower(trained, model, "blocks", layer_of_encoder)]
        self.merge = prepare_towers(self.towers, seed=seed)

    def forward(self, inputs: LabeledImages) -> tuple[Tensor, Metrics]:
        """Compute loss and accuracy of a batch. For mixed images, accuracy refers to the first of the two labels."""
        pixels, targets, labels = self._augmented(inputs)
        return self._loss(self.model(pixels), targets, labels, inputs.weights)

    def micro_batch_weights(self, micro_batches: Sequence[Batch[LabeledImages]]) -> Tensor | None:
        """Compute factors from the weights of the images, so that the loss is the weighted mean over the step."""
        totals = [batch.inputs.weights.sum() for batch in micro_batches if batch.inputs.weights is not None]
        if not totals:
            return None
        return relative_weights(torch.stack(totals), micro_batches)

    def encode(self, inputs: LabeledImages) -> tuple[Tensor, Metrics]:
        """Compute the head's inputs with their targets and labels. The loss is 0, or NaN if features are not finite."""
        pixels, targets, labels = self._augmented(inputs)
        features = self._features(pixels)
        # A loss that depends on the features, since the loop checks it for infinity.
        return features.sum() * 0, {"features": features, "targets": targets, "labels": labels}

    def replay(
        self, inputs: LabeledImages, head_grads: Sequence[Tensor], feature_grads: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """Compute a scalar that propagates gradients of the head's weights and inputs.

        Args:
            inputs: Images of a micro-batch.
            head_grads: Gradients with respect to the head's weights.
            feature_grads: Gradient with respect to the head's inputs. None for a frozen encoder.
        """
        head: Any = self.model.head
        products = []
        for weight, grad in zip(head.linear.parameters(), head_grads, strict=True):
            products.append((weight * grad).sum())
        value = torch.stack(products).sum()
        if feature_grads is not None:
            value = value + (self._features(self._augmented(inputs)[0]) * feature_grads).sum()
        return value, {}

    def accumulate(
        self,
        call: Call,
        micro_batches: Sequence[Batch[LabeledImages]],
        backward: Callable[[Tensor], None],
        reseed: Callable[[int], None],
    ) -> Metrics:
        """Compute the gradients of a step, with a batch norm before the head over all samples of the step.

        The batch norm needs all micro-batches encoded before the first gradient. They are encoded a second time for the
        encoder's gradients, unless the encoder is frozen.

        Args:
            call: As in `Task.accumulate`.
            micro_batches: As in `Task.accumulate`.
            backward: As in `Task.accumulate`.
            reseed: As in `Task.accumulate`.
        """
        head = self.model.head
        if not isinstance(head, NormedHead) or (len(micro_batches) == 1 and not dist.is_initialized()):
            return super().accumulate(call, micro_batches, backward, reseed)
        parts = defaultdict(list)
        with torch.no_grad():
            for index, batch in enumerate(micro_batches):
                reseed(index)
                for name, values in call(batch, self.encode)[1].items():
                    parts[name].append(values)
        features = torch.cat(parts["features"]).float().requires_grad_()
        targets = torch.cat(parts["targets"])
        labels = torch.cat(parts["labels"])
        loss, metrics = self._loss(head.of_step(features), targets, labels)
        # The head and its norm see all samples of the step at once. Encoders are then replayed with these gradients,
        # one micro-batch at a time.
        feature_grads, *head_grads = torch.autograd.grad(loss, [features, *head.linear.parameters()])
        in_head = set(head.parameters())
        is_frozen = not any(weight.requires_grad for weight in self.parameters() if weight not in in_head)
        shares = torch.split(feature_grads, list(map(len, micro_batches)))
        # With a frozen encoder a single backward pass suffices: only the head gets gradients.
        replayed = range(len(micro_batches))[-1:] if is_frozen else range(len(micro_batches))
        # Each replay adds its share, so that DDP averages the whole gradient with the last one.
        head_share = [grad / len(replayed) for grad in head_grads]
        for index in replayed:
            reseed(index)
            feature_share = None if is_frozen else shares[index]
            backward(call(micro_batches[index], self.replay, head_share, feature_share)[0])
        return {**metrics, "loss": loss.detach()}

    def before_step(self, step: int) -> None:
        """Set the step from which mixing is drawn."""
        if self.mix:
            self.mix.step = step

    def _augmented(self, inputs: LabeledImages) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise, erase and mix images, and return them with targets and labels. Mixing changes the order."""
        pixels = self.preprocess.pixels(inputs.images)
        labels = inputs.labels
        if self.erase and self.training and inputs.erasing_seeds is not None:
            erase(pixels, inputs.erasing_seeds, self.erase)
        if self.mix:
            return self.mix(pixels, labels)
        return pixels, labels, labels

    def _features(self, pixels: Tensor) -> Tensor:
        """Compute the head's inputs, (B, D)."""
        model: Any = self.model
        features: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return features

    def _loss(
        self, logits: Tensor, targets: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        logits = logits.float()
        reduction = "mean" if weights is None else "none"
        if labels.ndim == 2:
            losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction=reduction)
            metrics = {"label_accuracy": ((logits > 0) == labels).float().mean()}
        else:
            smoothing = 0.0 if self.mix else self.label_smoothing  # mixed targets are already smoothed
            losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)
            metrics = {"accuracy": (logits.argmax(dim=-1) == labels).float().mean()}
        if weights is None:
            return losses, metrics
        return (losses.view(len(weights), -1).mean(dim=1) * weights).sum() / weights.sum().clamp(min=1e-9), metrics

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the classifier."""
        return accelerated(choice, self)

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of the classifier."""
        return padded(self)

    def encoder(self) -> PooledVision:
        """Wrap the classifier as an encoder, to evaluate its features and its head."""
        return PooledVision(self.model, self.preprocess)

    def export(self, directory: Path) -> VisionCheckpoint:
        """Write the classifier in timm's layout, with its class names and with LoRA weights merged."""
        self.merge()
        if isinstance(self.model.head, NormedHead):
            self.model.head = self.model.head.folded()
        return save_vision(self.model, directory)


def encoder_tower(
    trained: Trained,
    root: nn.Module,
    blocks: str,
    layer: Callable[[str], int | None],
    *,
    new: Collection[str] = (),
    rate: Callable[[int], float] | None = None,
) -> TrainedTower:
    """Group the trained weights of a timm encoder.

    The head is not included. It has the full learning rate.

    Args:
        trained: Choice of the trained weights.
        root: Module that contains the encoder.
        blocks: Name of the encoder's blocks in `root`.
        layer: Maps a weight's name to its layer, as `layer_of` does. None: the weight is part of the head.
        new: Names of weights in new layers. They are not frozen.
        rate: Separate learning rate of the encoder by step.

    Source: Bao et al. 2021, BEiT (arXiv:2106.08254), for the groups.
    """
    depth = len(root.get_submodule(blocks))  # type: ignore[arg-type]
    layers = partial(_by_layer, layer=layer, depth=depth)
    return TrainedTower(trained, root, layers, attrgetter(blocks), new, rate, separate=True)


def check_trained(trained: Trained, encoder: nn.Module) -> None:
    """Check a choice of trained weights by applying it to an encoder on the meta device. Raises UserError."""
    prepare_towers([encoder_tower(trained, encoder, "blocks", layer_of_encoder)])


def _by_layer(root: nn.Module, layer: Callable[[str], int | None], depth: int) -> list[list[str]]:
    layers: list[list[str]] = [[] for _ in range(depth + 2)]
    for name, _ in root.named_parameters():
        number = layer(name)
        if number is not None:
            layers[min(number, depth + 1)].append(name)
    return layers


def layer_of(name: str) -> int:
    """Find a parameter's layer.

    It is 0 before the blocks, b + 1 for block b, and AFTER_THE_BLOCKS for the final norm. This follows EVA's code. timm
    counts a norm before pooling as part of the last block.
    """
    if name.startswith(BEFORE_THE_BLOCKS):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    if not block:
        return AFTER_THE_BLOCKS
    return int(block[1]) + 1


def layer_of_encoder(name: str) -> int | None:
    """Find a parameter's layer, as `layer_of` does.

    The head has none, and neither has the norm after pooling, because it is new like the head.
    """
    if name.startswith(("head.", "head_dist.", "fc_norm.")):
        return None
    return layer_of(name)
