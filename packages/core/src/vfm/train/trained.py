"""Which weights are trained, and at which rates: freezing, last blocks, LoRA, and the groups of the optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vfm.base import UserError
from vfm.interfaces import AllWeights, FrozenWeights, LastBlocks, Lora, Trained
from vfm.models import LowRank, is_of_block

Merge = Callable[[], None]
PATCH_EMBED = re.compile(r"\b(patch_embed|conv1|tubelets)\b")  # timm's, open_clip's, and that of videos


@dataclass
class ParamGroup:
    """Parameters that share a learning rate and a weight decay."""

    params: list[nn.Parameter]
    lr_scale: float = 1.0  # times the scheduled rate
    weight_decay: float | None = None  # None: the optimizer's
    rate: Callable[[int], float] | None = None  # from the step (from 0) to its own rate; None: the training's schedule


@dataclass(frozen=True)
class TrainedTower:
    """The weights of an encoder, or of another model of blocks, and which of them are trained.

    Attributes:
        trained: the choice.
        root: the module that has the weights.
        layers: returns the names in `root` of the weights of each layer: before the blocks, of each block, after them.
            LoRA adds weights, so the names are read again for the optimizer.
        blocks: returns the blocks of `root`.
        new: names of weights with random values, which are not frozen.
        rate: learning rate by step, instead of the training's schedule.
        separate: each layer has parameter groups of its own, as in BEiT's code, also where rates are equal. A gradient
            norm is summed in the order of the groups, so the order decides its last bits.
    """

    trained: Trained
    root: nn.Module
    layers: Callable[[nn.Module], list[list[str]]]
    blocks: Callable[[nn.Module], Iterable[nn.Module]]
    new: Collection[str] = ()
    rate: Callable[[int], float] | None = None
    separate: bool = False

    def freeze(self, layers: Iterable[Iterable[str]]) -> None:
        """Freeze the weights of some layers, but for new ones."""
        weights = dict(self.root.named_parameters())
        for name in (name for layer in layers for name in layer if name not in self.new):
            weights[name].requires_grad_(False)


def prepare_towers(towers: Iterable[TrainedTower], *, seed: int = 0) -> Merge:
    """Freeze what is not trained of each tower, in place; return a function that merges LoRA's changes at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        merges = [tower.trained.build(tower) for tower in towers]

    def merge() -> None:
        for one in filter(None, merges):
            one()

    return merge


def train_all(trained: AllWeights, tower: TrainedTower) -> None:
    """Freeze the patch embedding, if it is not to be trained.

    Raises:
        UserError: there is none.
    """
    if trained.freeze_patch_embed:
        stem = [name for name in tower.layers(tower.root)[0] if PATCH_EMBED.search(name)]
        if not stem:
            raise UserError(f"freeze_patch_embed: {type(tower.root).__name__} has no patch embedding; leave it out")
        tower.freeze([stem])


def train_last_blocks(trained: LastBlocks, tower: TrainedTower) -> None:
    """Freeze everything before the last blocks.

    Raises:
        UserError: there are not so many blocks, or none are trained and nothing is after them.
    """
    layers = tower.layers(tower.root)
    num_after = 0 if any(map(is_of_block, layers[-1])) else 1
    depth, least = len(layers) - 1 - num_after, 1 - num_after
    if not least <= trained.blocks <= depth:
        raise UserError(
            f"trained.blocks: expected {least} to {depth}, the blocks of {type(tower.root).__name__}; got"
            f" {trained.blocks}"
        )
    tower.freeze(layers[: 1 + depth - trained.blocks])


def train_low_rank(trained: Lora, tower: TrainedTower) -> Merge:
    """Freeze everything and add low-rank changes to the blocks, drawn from torch's generator; return what merges them.

    Raises:
        UserError: peft is not installed.
    """
    tower.freeze(tower.layers(tower.root))
    new = [weight for weight in tower.root.parameters() if weight.requires_grad]
    changes = LowRank(tower.blocks(tower.root), rank=trained.rank, alpha=trained.alpha)
    for weight in new:  # peft trains its changes only
        weight.requires_grad_()
    return changes.merge


def freeze_all(trained: FrozenWeights, tower: TrainedTower) -> None:
    """Freeze everything."""
    tower.freeze(tower.layers(tower.root))


def parameter_groups(
    parameters: Iterable[tuple[nn.Parameter, bool]], towers: Sequence[TrainedTower]
) -> list[ParamGroup]:
    """Return groups of the trained parameters: towers by layer, as far as rates differ, all else at the full rate.

    Args:
        parameters: each with whether it is decayed.
        towers: what is trained by layer.
    """
    rates: dict[int, tuple[int, float, float | None, Any]] = {}
    last = 0
    for tower in towers:
        weights, layers = dict(tower.root.named_parameters()), tower.layers(tower.root)
        last = max(last, len(layers) - 1)
        for number, names in enumerate(layers):
            scale = tower.trained.lr_scale * tower.trained.layer_decay ** (len(layers) - 1 - number)
            rate = (number, scale, tower.trained.weight_decay, tower.rate)
            rates |= {id(weights[name]): rate for name in names}
    separate = any(tower.separate for tower in towers)
    groups: dict[Any, ParamGroup] = {}
    for parameter, decayed in parameters:
        if parameter.requires_grad:
            number, scale, decay, rate = rates.get(id(parameter), (last, 1.0, None, None))
            values = (scale, decay if decayed else 0.0, rate)
            groups.setdefault((number if separate else 0, *values), ParamGroup([], *values)).params.append(parameter)
    found = list(groups.values())
    return found if separate else sorted(found, key=lambda group: group.weight_decay == 0.0)  # decayed ones first


def keep_frozen_in_eval(module: nn.Module) -> None:
    """Set parts of which no weight is trained to evaluation mode: no drop path, no new batch statistics."""
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()


def freeze_unused(module: nn.Module, outputs: Callable[[], Sequence[Tensor]]) -> None:
    """Freeze the trained parameters that receive no gradient: DDP waits for the gradient of every trained parameter.

    Args:
        module: changed in place.
        outputs: runs the module and returns what the losses depend on.
    """
    trained = [param for param in module.parameters() if param.requires_grad]
    total: Any = sum(value.float().sum() for value in outputs()) if trained else None
    gradients = torch.autograd.grad(total, trained, allow_unused=True) if trained else ()
    for param, gradient in zip(trained, gradients, strict=True):
        param.requires_grad_(gradient is not None)
