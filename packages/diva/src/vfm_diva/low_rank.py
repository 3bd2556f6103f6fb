"""LoRA in a vision tower, through peft: added before training, merged after it.

peft changes linear layers that are called. Two attentions do not call theirs: torch's own, of open_clip's towers, and
timm's EVA. Both are brought to it here for as long as the training takes. (peft 0.21's own wrapper of torch's attention
adds the output projection's change twice and counts it once in the gradient.)

Source: Hu et al. 2021, LoRA (arXiv:2106.09685).
"""

# B batch, N tokens, D width, H heads

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.config import UserError
from vfm.models.patch_features import vision_tower

M = TypeVar("M", bound=nn.Module)
BIAS_APART = "qkv_bias_separate"  # the switch by which timm's EVA calls its fused projection and adds the bias after


class CalledAttention(nn.Module):
    """torch's self-attention, its projections linear layers that are called; the weights are those of `attention`."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.num_heads = attention.embed_dim, attention.num_heads
        with torch.device("meta"):
            self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Tokens (B, N, D) that attend to themselves, and no weights: open_clip's blocks ask for none."""
        q, k, v = self.in_proj(query).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class LowRank:
    """Low-rank changes of every linear layer in a tower's blocks; nothing else of the tower is trained then.

    Args:
        visual: changed in place.
        rank: of each change.
        alpha: a change is alpha / rank times the product of its factors.
        seed: draws the first factors; the second ones are 0, so that nothing changes at first.

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
        self.fused = [part for part in visual.modules() if getattr(part, BIAS_APART, None) is False]
        self.uncalled = {name: part for name, part in visual.named_modules() if isinstance(part, nn.MultiheadAttention)}
        for part in self.fused:
            setattr(part, BIAS_APART, True)
        for name, attention in self.uncalled.items():
            self._put(name, CalledAttention(attention))
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear_layers(visual))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = LoraModel(visual, config, "default")
        self.model.eval()

    def merge(self) -> None:
        """Makes the tower a plain one again: its old weights plus the changes."""
        self.model.merge_and_unload()
        for part in self.fused:
            setattr(part, BIAS_APART, False)
        for name, attention in self.uncalled.items():  # it shares the weights that were merged into
            self._put(name, attention)

    def _put(self, name: str, part: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self.visual.get_submodule(parent), own, part)


def linear_layers(visual: nn.Module) -> list[str]:
    """Names of the linear layers in a tower's blocks."""
    return [name for name, _ in _in_blocks(visual, nn.Linear)]


def _in_blocks(visual: nn.Module, kind: type[M]) -> Iterator[tuple[str, M]]:
    inside = {id(part) for block in vision_tower(visual).blocks for part in block.modules()}
    yield from ((name, part) for name, part in visual.named_modules() if id(part) in inside and isinstance(part, kind))
