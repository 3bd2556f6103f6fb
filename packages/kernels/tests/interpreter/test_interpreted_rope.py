"""Rotary positions: the kernel against the plain form."""

import pytest
import torch
from torch import Tensor

from vfm_kernels.multihead.rope import rotate, rotate_plain

OP = torch.ops.vfm_kernels.rotate.default
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def table(num_positions: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    angles = torch.rand(batch, num_positions, width // 2) * 6
    return angles.sin(), angles.cos()


def plain(heads: Tensor, sin: Tensor, cos: Tensor, num_prefix_tokens: int, positions: Tensor | None) -> Tensor:
    sin, cos = (each.to(torch.promote_types(heads.dtype, torch.float32)) for each in (sin, cos))
    return rotate_plain(heads, sin, cos, num_prefix_tokens, positions)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 88])
def test_heads_of_a_packed_buffer(agrees, guarded, dtype, width):
    qkv, (sin, cos) = guarded(torch.randn(2, 17, 9, width).to(dtype)), table(16, width)
    agrees(lambda x: rotate(x[:, :, :6], sin, cos, 1, None), lambda x: plain(x[:, :, :6], sin, cos, 1, None), [qkv])


def test_one_table_for_all_samples(agrees, guarded):
    sin, cos = (each.expand(2, -1, -1) for each in table(16, 64, batch=1))
    heads = guarded(torch.randn(2, 17, 3, 64))
    agrees(lambda x: rotate(x, sin, cos, 1, None), lambda x: plain(x, sin, cos, 1, None), [heads])


@pytest.mark.parametrize("num_tokens", [1, 2, 16, 63, 66])
def test_positions_of_each_token(agrees, guarded, num_tokens):
    heads, (sin, cos) = guarded(torch.randn(2, num_tokens, 3, 72)), table(20, 72)
    positions = torch.randint(-1, 20, (2, num_tokens))
    agrees(lambda x: rotate(x, sin, cos, 0, positions), lambda x: plain(x, sin, cos, 0, positions), [heads])


def test_permuted_heads_and_separated_channels(agrees):
    heads, (sin, cos) = torch.randn(2, 4, 33, 32).transpose(1, 2), table(32, 32)
    agrees(lambda x: rotate(x, sin, cos, 1, None), lambda x: plain(x, sin, cos, 1, None), [heads])
    heads = heads.transpose(1, 3).contiguous().transpose(1, 3)
    agrees(lambda x: rotate(x, sin, cos, 1, None), lambda x: plain(x, sin, cos, 1, None), [heads])


def test_opcheck_passes_and_the_whole_graph_compiles():
    linear, (sin, cos) = torch.nn.Linear(8, 4 * 8), table(4, 8)
    tokens, heads = torch.randn(2, 5, 8), torch.randn(2, 5, 12, 8, requires_grad=True)
    torch.library.opcheck(OP, (heads, sin, cos, 1, None, False))

    def loss(tokens: Tensor) -> Tensor:
        return rotate(linear(tokens).view(2, 5, 4, 8), sin, cos, 1, None).sin().sum()

    def gradient(function) -> Tensor:
        return torch.autograd.grad(function(tokens), linear.weight)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(gradient(compiled), gradient(loss))
