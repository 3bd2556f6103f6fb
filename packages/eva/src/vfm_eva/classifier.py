"""Fine-tuning for classification as a task for `vfm.train.fit`, with layer-wise learning-rate decay."""

# B batch, C classes, L blocks, S side of the image

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import PooledVision, save_vision, vision_preprocess
from vfm.plugin import VisionCheckpoint
from vfm.train import Metrics, ParamGroup, Task
from vfm_eva.labeled_images import LabeledImages, seeded_global_generators
from vfm_kernels import Kernels, accelerated, padded

__all__ = ["Classifier", "LabeledImages", "layer_of", "layered_groups"]

BEFORE_THE_BLOCKS = ("cls_token", "reg_token", "mask_token", "pos_embed", "patch_embed", "norm_pre")


class NormedHead(nn.Module):
    """A batch norm without parameters before a linear head; `folded` is one linear layer with the same outputs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6), linear

    def forward(self, features: Tensor) -> Tensor:
        """Return the score of each class, (B, D) to (B, C)."""
        scores: Tensor = self.linear(self.norm(features))
        return scores

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Return the linear layer that computes the same in evaluation mode."""
        linear = nn.Linear(self.linear.in_features, self.linear.out_features)
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        weight = self.linear.weight / (var + self.norm.eps).sqrt()
        linear.weight.copy_(weight)
        linear.bias.copy_(self.linear.bias - weight @ mean)
        return linear


class Classifier(Task[LabeledImages]):
    """Cross-entropy of a timm classifier, binary cross-entropy for several labels an image, with layer decay.

    Args:
        model: a timm vision transformer with a head.
        layer_decay: learning rate of a layer as a factor of that of the layer after it.
        label_smoothing: share of the target spread evenly over all classes.
        mixup: alpha of mixup; 0: none.
        cutmix: alpha of CutMix; 0: none.
        erasing: probability that a rectangle of an image becomes noise.
        freeze_patch_embed: do not train the patch embedding.
        freeze_blocks: number of first blocks that are not trained, with all that is before them; None: only the head
            and a new norm before it are trained.
        batch_norm: put a batch norm without parameters before the head.

    Sources: Bao et al. 2021, BEiT (arXiv:2106.08254) for layer decay; Zhang et al. 2017 (arXiv:1710.09412) and Yun et
    al. 2019 (arXiv:1905.04899) for mixing, as in timm, within each micro-batch; Zhong et al. 2017 (arXiv:1708.04896)
    for erasing, as in timm; Fang et al. 2022 (arXiv:2211.07636) for the batch norm of a linear probe.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erasing: float = 0.0,
        freeze_patch_embed: bool = False,
        freeze_blocks: int | None = 0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.layer_decay, self.label_smoothing = model, layer_decay, label_smoothing
        self.preprocess = vision_preprocess(model)
        self.mix = None
        if mixup or cutmix:
            self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=model.num_classes)
        if freeze_patch_embed:
            embed: Any = model.patch_embed
            embed.requires_grad_(False)
        self.erase = RandomErasing(erasing, mode="pixel", device="cpu") if erasing else None
        if batch_norm:
            model.head = NormedHead(model.head)  # type: ignore[arg-type]
        if freeze_blocks != 0:
            self._freeze(freeze_blocks)

    def forward(self, inputs: LabeledImages) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch and its accuracy (of mixed images: with respect to the first of the two)."""
        pixels, labels = self.preprocess.pixels(inputs.images), inputs.labels
        if self.erase and self.training:
            self.erase.device = pixels.device
            with seeded_global_generators(int(torch.randint(2**62, ()))):
                self.erase(pixels)
        if labels.ndim == 2:
            logits = self.model(pixels).float()
            return F.binary_cross_entropy_with_logits(logits, labels.float()), {
                "label_accuracy": ((logits > 0) == labels).float().mean()
            }
        targets, smoothing = labels, self.label_smoothing
        if self.mix:
            # Mixup draws from NumPy's generator; torch's is seeded by the step, so that a resumed training is exact.
            with seeded_global_generators(int(torch.randint(2**62, ()))):
                pixels, targets = self.mix(pixels, labels)
            smoothing = 0.0  # the mixed targets are already smoothed
        logits = self.model(pixels)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        return loss, {"accuracy": (logits.argmax(dim=-1) == labels).float().mean()}

    def parameter_groups(self) -> list[ParamGroup]:
        """Return one group per layer and per weight decay."""
        model: Any = self.model
        depth = len(model.blocks)
        return layered_groups(self, depth, self.layer_decay, lambda name: layer_of(name.removeprefix("model."), depth))

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the classifier."""
        return accelerated(choice, self)

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of the classifier."""
        return padded(self)

    def encoder(self) -> PooledVision:
        """Return the classifier, for evaluations of its features and of its head."""
        return PooledVision(self.model, self.preprocess)

    def export(self, directory: Path) -> VisionCheckpoint:
        """Write the classifier in timm's layout, with its class names."""
        if isinstance(self.model.head, NormedHead):
            self.model.head = self.model.head.folded()
        return save_vision(self.model, directory)

    def _freeze(self, num_blocks: int | None) -> None:
        """Exclude the first blocks and all before them from training; None: all but the head and a norm after pooling.

        Frozen blocks are not skipped at random either.
        """
        model: Any = self.model
        depth = len(model.blocks)
        for name, parameter in model.named_parameters():
            last = layer_of(name, depth) > depth
            trained = name.startswith(("head.", "fc_norm.")) if num_blocks is None else last
            if not trained and (num_blocks is None or layer_of(name, depth) <= num_blocks):
                parameter.requires_grad_(False)
        for block in model.blocks[:num_blocks]:
            for module in block.modules():
                if isinstance(module, DropPath):
                    module.drop_prob = 0.0


def layered_groups(
    task: Task[Any],
    depth: int,
    layer_decay: float,
    layer: Callable[[str], int],
    *,
    decay_vectors: bool = False,
    rates: Mapping[str, Callable[[int], float]] | None = None,
) -> list[ParamGroup]:
    """Return the trained parameters of a task in one group per layer and per weight decay.

    Args:
        task: its `no_weight_decay()` and vectors are not decayed.
        depth: number of blocks.
        layer_decay: learning rate of a layer as a factor of that of the layer after it.
        layer: returns the layer of a parameter by its name, 0 to depth + 1, as `layer_of` does.
        decay_vectors: decay all parameters.
        rates: schedules of the parameters whose names begin with a key, instead of the training's.
    """
    exempt = task.no_weight_decay()
    groups: dict[tuple[int, bool, str], ParamGroup] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            number = layer(name)
            decayed = decay_vectors or (parameter.ndim > 1 and name not in exempt)
            scale = layer_decay ** (depth + 1 - number)
            part = next((prefix for prefix in rates or () if name.startswith(prefix)), "")
            new = ParamGroup([], scale, None if decayed else 0.0, (rates or {}).get(part))
            groups.setdefault((number, decayed, part), new).params.append(parameter)
    return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """Return a parameter's layer: 0 before the blocks, b + 1 for block b, depth + 1 for the head and the final norm.

    This is the rule of EVA's code; timm counts a norm before pooling with the last block.
    """
    if name.startswith(BEFORE_THE_BLOCKS):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1
