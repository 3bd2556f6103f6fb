"""The updates: which weights of a vision tower are trained, its own or low-rank changes of them.

LoRA comes from peft: added before training, merged after it. peft changes linear layers that are called. Two
attentions do not call theirs: torch's own, in open_clip's towers, and timm's EVA. Both are made to call them during
training. (peft 0.21's own wrapper of torch's attention adds the output projection's change twice and counts it once in
the gradient.)

Source: Hu et al. 2021, LoRA (arXiv:2106.09685).
"""

# B batch, N tokens, D width, H heads

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import vision_tower
from vfm.plugin import UserError
from vfm_diva.parts import LastBlocks, Lora, WholeTower

M = TypeVar("M", bound=nn.Module)
SEPARATE_BIAS = "qkv_bias_separate"  # with it, timm's EVA calls its fused projection and adds the bias afterwards


def _nothing() -> None:
    return


@dataclass(frozen=True)
class TowerUpdate:
    """A tower that was prepared for training.

    start: a part of the tower; what comes before it is frozen. None: nothing is.
    merge: makes the tower an ordinary one again, after the training.
    """

    start: nn.Module | None = None
    merge: Callable[[], None] = _nothing


def update_tower(config: WholeTower, visual: nn.Module, *, seed: int) -> TowerUpdate:
    """Prepare to train the whole tower."""
    return TowerUpdate()


def update_last_blocks(config: LastBlocks, visual: nn.Module, *, seed: int) -> TowerUpdate:
    """Prepare to train the last blocks and what follows them."""
    return TowerUpdate(start=vision_tower(visual).blocks[-config.blocks])


def update_lora(config: Lora, visual: nn.Module, *, seed: int) -> TowerUpdate:
    """Add low-rank changes to the tower."""
    return TowerUpdate(merge=LowRank(visual, rank=config.rank, alpha=config.alpha, seed=seed).merge)


def freeze_unused(
    module: nn.Module, outputs: Callable[[], Sequence[Tensor]], *, start: nn.Module | None = None
) -> None:
    """Freeze the trained parameters that receive no gradient: DDP waits for the gradient of every trained parameter.

    Args:
        module: changed in place.
        outputs: runs the module and returns what the losses depend on.
        start: a part at whose input the gradients end, so that everything before it is frozen too.
    """
    trained = [param for param in module.parameters() if param.requires_grad]
    hook = start.register_forward_pre_hook(_detach_inputs) if start else None
    try:
        total: Tensor = sum(value.float().sum() for value in outputs())  # type: ignore[assignment]
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
    finally:
        if hook:
            hook.remove()
    for param, gradient in zip(trained, gradients, strict=True):
        param.requires_grad_(gradient is not None)


def _detach_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)


class CalledAttention(nn.Module):
    """torch's self-attention with projections that are called as linear layers; it shares `attention`'s weights."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.num_heads = attention.embed_dim, attention.num_heads
        with torch.device("meta"):  # the weights are replaced below
            self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return tokens (B, N, D) after self-attention, and no weights: open_clip's blocks need none."""
        q, k, v = self.in_proj(query).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class LowRank:
    """Low-rank changes of every linear layer in a tower's blocks; nothing else of the tower is trained.

    Args:
        visual: changed in place.
        rank: of each change.
        alpha: a change is alpha / rank times the product of its factors.
        seed: of the first factors; the second ones are 0, so that the tower is unchanged at first.

    Raises:
        UserError: the tower has no blocks, or peft is not installed.
    """

    def __init__(self, visual: nn.Module, *, rank: int, alpha: int, seed: int = 0) -> None:
        try:
            from peft import LoraConfig
            from peft.tuners.lora import LoraModel
        except ImportError:
            raise UserError("update: {type: lora} needs peft: pip install 'vfm-diva[lora]'") from None
        self.visual = visual
        self.fused = [part for part in visual.modules() if getattr(part, SEPARATE_BIAS, None) is False]
        self.attentions = {
            name: part for name, part in visual.named_modules() if isinstance(part, nn.MultiheadAttention)
        }
        # peft sees only layers that are called, so both kinds of attention are changed before it looks for layers.
        for part in self.fused:
            setattr(part, SEPARATE_BIAS, True)
        for name, attention in self.attentions.items():
            self._replace(name, CalledAttention(attention))
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear_layers(visual))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = LoraModel(visual, config, "default")
        self.model.eval()

    def merge(self) -> None:
        """Add the changes to the tower's weights, and restore its modules."""
        self.model.merge_and_unload()
        for part in self.fused:
            setattr(part, SEPARATE_BIAS, False)
        for name, attention in self.attentions.items():  # it shares the merged weights
            self._replace(name, attention)

    def _replace(self, name: str, part: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self.visual.get_submodule(parent), own, part)


def linear_layers(visual: nn.Module) -> list[str]:
    """Return the names of the linear layers in a tower's blocks."""
    return [name for name, _ in _in_blocks(visual, nn.Linear)]


def _in_blocks(visual: nn.Module, kind: type[M]) -> Iterator[tuple[str, M]]:
    inside = {id(part) for block in vision_tower(visual).blocks for part in block.modules()}
    yield from ((name, part) for name, part in visual.named_modules() if id(part) in inside and isinstance(part, kind))
