"""Choose trained weights and their learning rates by freezing, last blocks, LoRA and parameter groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vfm.base import UserError
from vfm.interfaces import AllWeights, FrozenWeights, LastBlocks, Lora, Trained
from vfm.models import LowRank, change_matrices, is_of_block

Merge = Callable[[], None]
PATCH_EMBED = re.compile(r"\b(patch_embed|conv1|tubelets)\b")  # in timm, in open_clip, in video models


@dataclass
class ParamGroup:
    """Parameters that share a learning rate and a weight decay."""

    params: list[nn.Parameter]
    lr_scale: float = 1.0  # factor of the scheduled rate
    weight_decay: float | None = None  # None: the optimizer's weight decay
    rate: Callable[[int], float] | None = None  # rate by step (from 0), None: the schedule of the training


@dataclass(frozen=True)
class TrainedTower:
    """The weights of an encoder, or of another model with blocks, and the choice of trained weights.

    Attributes:
        trained: The choice.
        root: The module that has the weights.
        layers: Lists the names of the weights in `root` by layer: before the blocks, in each block, after the blocks.
            It is called again for the optimizer, because LoRA adds weights.
        blocks: Lists the blocks of `root`.
        new: Names of weights with random values. They are not frozen.
        rate: Learning rate by step, instead of the schedule of the training.
        separate: Whether each layer has separate parameter groups, as in BEiT's code, even if rates are equal. A
            gradient norm is summed in the order of the groups, so the order decides its last bits.
    """

    trained: Trained
    root: nn.Module
    layers: Callable[[nn.Module], list[list[str]]]
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    new: Collection[str] = ()
    rate: Callable[[int], float] | None = None
    separate: bool = False

    def freeze(self, layers: Iterable[Iterable[str]]) -> None:
        """Freeze the weights of some layers, except new ones."""
        weights = dict(self.root.named_parameters())
        for name in chain.from_iterable(layers):
            if name not in self.new:
                weights[name].requires_grad_(False)


def prepare_towers(towers: Iterable[TrainedTower], *, seed: int = 0) -> Merge:
    """Freeze the weights of each tower that are not trained, in place.

    Args:
        towers: The towers.
        seed: Seed of LoRA's initial weights.

    Returns:
        A function that merges LoRA's updates at the end of the training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        merges = [tower.trained.build(tower) for tower in towers]

    def merge() -> None:
        for merge_tower in filter(None, merges):
            merge_tower()

    return merge


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """List the parameters of a module that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def train_all(trained: AllWeights, tower: TrainedTower) -> None:
    """Train all weights, except the patch embedding if it is to be frozen.

    Raises:
        UserError: If the model has no patch embedding.
    """
    if trained.freeze_patch_embed:
        stem = [name for name in tower.layers(tower.root)[0] if PATCH_EMBED.search(name)]
        if not stem:
            raise UserError(f"freeze_patch_embed: {type(tower.root).__name__} has no patch embedding; leave it out")
        tower.freeze([stem])


def train_last_blocks(trained: LastBlocks, tower: TrainedTower) -> None:
    """Freeze all weights before the last blocks.

    Raises:
        UserError: If the model has fewer blocks, or no block is trained and no weights come after the blocks.
    """
    layers = tower.layers(tower.root)
    num_after = 0 if any(map(is_of_block, layers[-1])) else 1
    depth = len(layers) - 1 - num_after
    least = 1 - num_after
    if not least <= trained.blocks <= depth:
        raise UserError(
            f"trained.blocks: expected {least} to {depth}, the blocks of {type(tower.root).__name__}; got"
            f" {trained.blocks}"
        )
    tower.freeze(layers[: 1 + depth - trained.blocks])


def train_low_rank(trained: Lora, tower: TrainedTower) -> Merge:
    """Freeze all weights, add low-rank updates, and return a function that merges them.

    The initial values are drawn from torch's generator.

    Raises:
        UserError: If peft is not installed.
    """
    layers = tower.layers(tower.root)
    tower.freeze(layers)
    new = trained_parameters(tower.root)
    changes = LowRank(
        tower.blocks(tower.root),
        rank=trained.rank,
        alpha=trained.alpha,
        dropout=trained.dropout,
        separate_qkv=trained.separate_qkv,
        biases=trained.biases,
    )
    for weight in new:  # peft freezes everything except its changes
        weight.requires_grad_()
    if not trained.after_blocks:
        return changes.merge
    names = [name for name in layers[-1] if name not in tower.new and not is_of_block(name)]
    merge_matrices = change_matrices(tower.root, names, rank=trained.rank, alpha=trained.alpha)

    def merge() -> None:
        changes.merge()
        merge_matrices()

    return merge


def freeze_all(trained: FrozenWeights, tower: TrainedTower) -> None:
    """Freeze all weights."""
    tower.freeze(tower.layers(tower.root))


def parameter_groups(
    parameters: Iterable[tuple[nn.Parameter, bool]], towers: Sequence[TrainedTower]
) -> list[ParamGroup]:
    """Group the trained parameters.

    Towers are grouped by layer if rates differ. All other parameters have the full rate.

    Args:
        parameters: Pairs of a parameter and whether it is decayed.
        towers: Models that are trained by layer.
    """
    rates: dict[int, tuple[int, float, float | None, Any]] = {}
    last = 0
    separate = False
    for tower in towers:
        separate = separate or tower.separate
        weights = dict(tower.root.named_parameters())
        layers = tower.layers(tower.root)
        last = max(last, len(layers) - 1)
        for number, names in enumerate(layers):
            scale = tower.trained.lr_scale * tower.trained.layer_decay ** (len(layers) - 1 - number)
            rate = (number, scale, tower.trained.weight_decay, tower.rate)
            for name in names:
                rates[id(weights[name])] = rate
    groups: dict[Any, ParamGroup] = {}
    for parameter, decayed in parameters:
        if parameter.requires_grad:
            number, scale, decay, rate = rates.get(id(parameter), (last, 1.0, None, None))
            values = (scale, decay if decayed else 0.0, rate)
            groups.setdefault((number if separate else 0, *values), ParamGroup([], *values)).params.append(parameter)
    if separate:
        return list(groups.values())
    return sorted(groups.values(), key=lambda group: group.weight_decay == 0.0)  # decayed ones first


def keep_frozen_in_eval(module: nn.Module) -> None:
    """Set submodules without trained weights to evaluation mode, so that they have no drop path and keep statistics."""
    for part in module.modules():
        if list(part.parameters()) and not trained_parameters(part):
            part.eval()


def freeze_unused(module: nn.Module, outputs: Callable[[], Sequence[Tensor]]) -> None:
    """Freeze trained parameters that receive no gradient, since DDP waits for the gradient of every trained parameter.

    Args:
        module: The module, changed in place.
        outputs: Runs the module and returns the tensors that the losses depend on.
    """
    trained = trained_parameters(module)
    if not trained:
        return
    total: Any = sum(value.float().sum() for value in outputs())
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    for param, gradient in zip(trained, gradients, strict=True):
        param.requires_grad_(gradient is not None)
