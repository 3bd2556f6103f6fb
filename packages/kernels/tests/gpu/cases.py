"""Every op that has a kernel, as a function of its differentiable inputs, beside its plain form."""

# B batch, N tokens, H heads, D width of a head, C channels

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vfm_kernels import (
    add_layer_norm,
    attention_packed,
    gather_tokens,
    info_nce,
    mask_tokens,
    masked_cosine_loss,
    scatter_tokens,
    siglip_loss,
    swiglu_subln,
    use_kernels,
)
from vfm_kernels.dispatch.dispatch import SETTINGS
from vfm_kernels.multihead.rope import rotate

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An op at some size.

    Attributes:
        op: function of `inputs`.
        inputs: differentiable tensors.
        fp32: whether the kernel takes fp32 on a GPU; attention's tiles are for half precision.
    """

    op: Function
    inputs: list[Tensor]
    fp32: bool = True

    def plain(self, *inputs: Tensor) -> Any:
        """Run the op's plain form."""
        with use_kernels("reference"):
            return self.op(*inputs)


def attention_case(backend: str, **kind: Any) -> Callable[..., Case]:
    """Return a case of packed attention; `rope`, `positions`, `causal` and `crops` are its kinds."""

    def case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int, width: int = 64) -> Case:
        pattern = {name: value for name, value in kind.items() if name == "causal"}
        if kind.get("crops"):
            ends = torch.tensor([0, tokens, tokens, 2 * tokens - 1], dtype=torch.int32, device=device)
            pattern |= {"cu_seqlens": ends, "max_seqlen": tokens}
            batch, tokens = 1, 2 * tokens - 1
        if kind.get("rope"):
            angles = torch.rand(tokens, width // 2, device=device)
            pattern |= {"sin": angles.sin(), "cos": angles.cos(), "num_prefix_tokens": 0}
        if kind.get("positions"):
            pattern["positions"] = torch.randint(-1, tokens, (batch, tokens), device=device)
        qkv = torch.randn(batch, tokens, 3, 2, width, device=device).to(dtype)

        def op(qkv: Tensor) -> Tensor:
            return attention_packed(qkv, backend="eager" if SETTINGS.choice == "reference" else backend, **pattern)

        return Case(op, [qkv], fp32=False)

    return case


def swiglu_case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
    """Return SwiGLU over 42 of 48 channels."""
    gate, value = (torch.randn(batch, tokens, 48, device=device).to(dtype) for _ in range(2))
    weight, bias = 1 + 0.3 * torch.randn(42, device=device), torch.randn(42, device=device)
    return Case(swiglu_subln, [gate, value, weight, bias])


def add_layer_norm_case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
    """Return a residual sum with layer scale, dropped paths and its norm."""
    residual, branch = (torch.randn(batch, tokens, 130, device=device).to(dtype) for _ in range(2))
    parameters = [1 + 0.3 * torch.randn(130, device=device), *(torch.randn(130, device=device) for _ in range(2))]
    drop_scale = torch.tensor([0.0, *[1.25] * max(batch - 1, 0)], device=device)[:batch]

    def op(residual: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, layer_scale: Tensor) -> Any:
        return add_layer_norm(residual, branch, weight, bias, layer_scale=layer_scale, drop_scale=drop_scale)

    return Case(op, [residual, branch, *parameters])


def rotate_case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
    """Return rotary positions of each token, some of which have none."""
    heads = torch.randn(batch, tokens, 3, 72, device=device).to(dtype)
    angles = torch.rand(1, 20, 36, device=device).expand(batch, -1, -1)
    positions = torch.randint(-1, 20, (batch, tokens), device=device)
    return Case(lambda heads: rotate(heads, angles.sin(), angles.cos(), 0, positions), [heads])


def mask_tokens_case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
    """Return the mask token, CLS and positions."""
    bool_mask = torch.rand(batch, tokens, device=device) < 0.4
    inputs = [
        torch.randn(batch, tokens, 24, device=device).to(dtype),
        *(torch.randn(24, device=device) for _ in range(2)),
    ]
    inputs.append(torch.randn(tokens + 1, 24, device=device))

    def op(patches: Tensor, token: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
        return mask_tokens(patches, token, bool_mask, cls_token=cls_token, pos_embed=pos_embed)

    return Case(op, inputs)


def gather_case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
    """Return half of the tokens."""
    index = torch.rand(batch, tokens, device=device).argsort(dim=1)[:, : (tokens + 1) // 2]
    return Case(lambda x: gather_tokens(x, index), [torch.randn(batch, tokens, 12, device=device).to(dtype)])


def scatter_case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
    """Return tokens among zeros."""
    index = torch.rand(batch, 2 * tokens, device=device).argsort(dim=1)[:, :tokens]
    inputs = [torch.randn(batch, tokens, 12, device=device).to(dtype)]
    return Case(lambda x: scatter_tokens(x, index, 2 * tokens), inputs)


def cosine_case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
    """Return EVA's loss."""
    bool_mask = torch.rand(batch, tokens, device=device) < 0.4
    target = torch.randn(batch, tokens, 66, device=device).to(dtype)
    inputs = [torch.randn(batch, tokens, 66, device=device).to(dtype)]
    return Case(lambda x: masked_cosine_loss(x, target.to(x.dtype), bool_mask), inputs)


def contrastive_case(loss: Function, *more: float) -> Callable[..., Case]:
    """Return a contrastive loss in chunks, whose plain form has all logits at once."""

    def case(device: torch.device, dtype: torch.dtype, batch: int, tokens: int) -> Case:
        unit = [torch.nn.functional.normalize(torch.randn(tokens, 24, device=device), dim=-1) for _ in range(2)]
        return Case(lambda *x: loss(*x, 20.0, *more, chunk_size=5), unit)

    return case


CASES: dict[str, Callable[..., Case]] = {
    "attention_short": attention_case("triton_short"),
    "attention_short rope": attention_case("triton_short", rope=True),
    "attention_stream": attention_case("triton_stream"),
    "attention_stream rope positions": attention_case("triton_stream", rope=True, positions=True),
    "attention_stream causal": attention_case("triton_stream", causal=True),
    "attention_stream crops": attention_case("triton_stream", crops=True),
    "swiglu_subln": swiglu_case,
    "add_layer_norm": add_layer_norm_case,
    "rotate": rotate_case,
    "mask_tokens": mask_tokens_case,
    "gather_tokens": gather_case,
    "scatter_tokens": scatter_case,
    "masked_cosine_loss": cosine_case,
    "info_nce": contrastive_case(info_nce),
    "info_nce of several processes": contrastive_case(
        lambda image, text, scale, chunk_size: info_nce(
            image, text, scale, all_image_features=image, all_text_features=text, chunk_size=chunk_size
        )
    ),
    "siglip_loss": contrastive_case(siglip_loss, -10.0),
}
