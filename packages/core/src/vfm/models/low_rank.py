"""LoRA trains low-rank updates of the linear layers in a model's blocks in place of their weights.

peft implements LoRA. The updates are added before training and merged after it. peft only updates linear layers that
are called. Two attention layers do not call theirs: torch's own, in open_clip's towers, and timm's EVA. Both are made
to call them during training. (peft 0.21's own wrapper of torch's attention adds the output projection's update twice
and counts it once in the gradient.)

Source: Hu et al. 2021, LoRA (arXiv:2106.09685).
"""

# B batch, N tokens, D width, H heads

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vfm.base import UserError, how_to_install

M = TypeVar("M", bound=nn.Module)
FUSED = ("qkv", "in_proj")  # names of a linear layer for query, key and value
SEPARATE_BIAS = "qkv_bias_separate"  # with it, timm's EVA calls its fused projection and adds the bias afterwards


class CalledAttention(nn.Module):
    """torch's self-attention with projections that are called as linear layers. It shares `attention`'s weights."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.num_heads = attention.num_heads
        with torch.device("meta"):  # the weights are replaced below
            self.in_proj = nn.Linear(width, 3 * width)
            self.out_proj = nn.Linear(width, width)
        self.in_proj.weight = attention.in_proj_weight
        self.in_proj.bias = attention.in_proj_bias
        self.out_proj.weight = attention.out_proj.weight
        self.out_proj.bias = attention.out_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Compute self-attention.

        The tokens have the same order in memory as in torch's own layer, so that the result is the same bit for bit.

        Args:
            query: Tokens, (B, N, D).
            key: The same tokens.
            value: The same tokens.
            need_weights: Not used.
            attn_mask: Mask of torch's layer.

        Returns:
            Tokens (B, N, D), and no weights, as open_clip's blocks need none.
        """
        packed = self.in_proj(query.transpose(0, 1))  # (N, B, 3 * D)
        packed = packed.unflatten(-1, (3, self.num_heads, -1))  # (N, B, 3, H, D / H)
        q, k, v = packed.permute(2, 1, 3, 0, 4)
        if attn_mask is not None and attn_mask.ndim == 3:  # (B * H, N, N), with a mask for each text
            attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:])
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.permute(2, 0, 1, 3).flatten(2)).transpose(0, 1), None


class SplitLinear(nn.Module):
    """Three linear layers in place of `fused`, for query, key and value, so that each has a separate update."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        biases = [None] * 3 if fused.bias is None else fused.bias.detach().chunk(3)
        for weight, bias in zip(fused.weight.detach().chunk(3), biases, strict=True):
            with torch.device("meta"):  # the weights are replaced below
                part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            part.weight = nn.Parameter(weight.clone(), requires_grad=False)
            if bias is not None:
                part.bias = nn.Parameter(bias.clone(), requires_grad=False)
            self.parts.append(part)

    def forward(self, x: Tensor) -> Tensor:
        """Compute query, key and value side by side."""
        return torch.cat([part(x) for part in self.parts], dim=-1)

    @torch.no_grad()
    def write_to(self, fused: nn.Linear) -> None:
        """Copy the weights back into the fused layer."""
        weights = dict(self.named_parameters())
        for kind, fused_param in (("weight", fused.weight), ("bias", fused.bias)):
            if fused_param is not None:
                fused_param.copy_(torch.cat([weights[f"parts.{number}.{kind}"] for number in range(3)]))


class ChangedMatrix(nn.Module):
    """Parametrization of a matrix: the matrix plus alpha / rank times the product of two factors.

    As in peft, the factor on the side of the inputs is drawn from torch's generator, and the other one is 0.

    Args:
        matrix: The matrix, (outputs, inputs) as in a linear layer.
        rank: Rank of the update.
        alpha: Numerator of the scale.
        transposed: Whether the matrix is (inputs, outputs).
    """

    def __init__(self, matrix: Tensor, *, rank: int, alpha: int, transposed: bool) -> None:
        super().__init__()
        outputs, inputs = reversed(matrix.shape) if transposed else matrix.shape
        self.scale = alpha / rank
        self.transposed = transposed
        self.lora_A = nn.Parameter(matrix.new_zeros(rank, inputs))
        self.lora_B = nn.Parameter(matrix.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, matrix: Tensor) -> Tensor:
        """Compute the updated matrix."""
        change = self.scale * self.lora_B @ self.lora_A
        return matrix + (change.T if self.transposed else change)


def change_matrices(module: nn.Module, names: Iterable[str], *, rank: int, alpha: int) -> Callable[[], None]:
    """Add low-rank updates to matrices, in place, and return a function that merges them.

    Args:
        module: Module that has the weights.
        names: Names of weights. Vectors among them are skipped.
        rank: Rank of each update.
        alpha: An update is alpha / rank times the product of its factors.
    """
    weights = dict(module.named_parameters())
    changed: list[tuple[nn.Module, str]] = []
    for name in names:
        if weights[name].ndim == 2:
            path, _, leaf = name.rpartition(".")
            part = module.get_submodule(path)
            # A matrix that is not a linear layer's, such as open_clip's projection, is multiplied from the right.
            transposed = not isinstance(part, nn.Linear)
            change = ChangedMatrix(weights[name].detach(), rank=rank, alpha=alpha, transposed=transposed)
            parametrize.register_parametrization(part, leaf, change)
            changed.append((part, leaf))

    def merge() -> None:
        for part, leaf in changed:
            parametrize.remove_parametrizations(part, leaf, leave_parametrized=True)

    return merge


class LowRank:
    """Low-rank updates of every linear layer in blocks. Nothing else in the blocks is trained, except `biases`.

    The first factors are drawn from torch's generator. The second factors are 0, so that the model is unchanged at
    first (except for rounding in timm's EVA, whose bias is added separately).

    Args:
        blocks: Parts of a model, changed in place.
        rank: Rank of each update.
        alpha: An update is alpha / rank times the product of its factors.
        dropout: Share of an update's inputs that is dropped in training mode.
        separate_qkv: Separate updates of query, key and value if a block has one layer for them.
        biases: Also train the biases of the updated layers.

    Raises:
        UserError: If peft is not installed.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        rank: int,
        alpha: int,
        dropout: float = 0.0,
        separate_qkv: bool = False,
        biases: bool = False,
    ) -> None:
        check_low_rank()
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        self.blocks = nn.ModuleList(blocks)
        self.fused = [part for part in self.blocks.modules() if getattr(part, SEPARATE_BIAS, None) is False]
        self.attentions = dict(_parts(self.blocks, nn.MultiheadAttention))
        # peft sees only layers that are called, so both kinds of attention are changed before it looks for layers.
        for part in self.fused:
            setattr(part, SEPARATE_BIAS, True)
        for name, attention in self.attentions.items():
            self.blocks.set_submodule(name, CalledAttention(attention))
        self.split: dict[str, nn.Linear] = {}
        if separate_qkv:
            for name, layer in list(_parts(self.blocks, nn.Linear)):
                if name.endswith(FUSED):
                    self.split[name] = layer
                    self.blocks.set_submodule(name, SplitLinear(layer))
        # One pattern of whole names, because peft matches the names in a list with the endings of layer names.
        pattern = "|".join(re.escape(name) for name, _ in _parts(self.blocks, nn.Linear))
        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            bias="lora_only" if biases else "none",
            target_modules=pattern,
        )
        self.changed = LoraModel(self.blocks, settings, "default")
        self.changed.eval()

    def merge(self) -> None:
        """Add the updates to the blocks' weights, and restore their modules."""
        self.changed.merge_and_unload()
        for name, layer in self.split.items():
            parts = self.blocks.get_submodule(name)
            assert isinstance(parts, SplitLinear)
            parts.write_to(layer)
            self.blocks.set_submodule(name, layer)
        for part in self.fused:
            setattr(part, SEPARATE_BIAS, False)
        for name, attention in self.attentions.items():  # it shares the merged weights
            self.blocks.set_submodule(name, attention)


def check_low_rank() -> None:
    """Check that LoRA's library is installed.

    Raises:
        UserError: If peft is not installed.
    """
    if not find_spec("peft"):
        raise UserError(f"trained: {{type: lora}} needs peft: {how_to_install('vfm-core[lora]')}")


def _parts(blocks: nn.ModuleList, kind: type[M]) -> Iterator[tuple[str, M]]:
    for name, part in blocks.named_modules():
        if isinstance(part, kind):
            yield name, part
