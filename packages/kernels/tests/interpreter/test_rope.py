"""Rotary positions: the kernel against its twin."""

import pytest
import torch
from torch import Tensor

from vfm_kernels import rope_2d
from vfm_kernels.rope import rotate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def table(num_positions: int, width: int, *batch: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(*batch, num_positions, width // 2) * 6
    return angles.sin(), angles.cos()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 88])
def test_packed_queries_and_keys_are_rotated_and_values_left(agrees, guarded, dtype, width):
    qkv = guarded(torch.randn(2, 17, 9, width).to(dtype))
    sin, cos = table(16, width)

    def op(heads: Tensor) -> Tensor:
        return rope_2d(heads * 1, sin, cos, num_rotated=6, num_prefix_tokens=1)

    def plain(heads: Tensor) -> Tensor:
        tables = (t.expand(2, -1, -1).to(torch.promote_types(heads.dtype, torch.float32)) for t in (sin, cos))
        return rotate(heads, *tables, 6, 1, None)

    agrees(op, plain, [qkv])


@pytest.mark.parametrize("num_tokens", [1, 2, 16, 63, 66])
def test_positions_of_each_token(agrees, guarded, num_tokens):
    heads, (sin, cos) = guarded(torch.randn(2, num_tokens, 3, 72)), table(20, 72)
    positions = torch.randint(-1, 20, (2, num_tokens))
    agrees(
        lambda x: rope_2d(x * 1, sin, cos, positions=positions),
        lambda x: rotate(x, *(t.expand(2, -1, -1).to(x.dtype) for t in (sin, cos)), 3, 0, positions),
        [heads],
    )


def test_angles_of_each_sample_and_permuted_heads(agrees):
    heads, (sin, cos) = torch.randn(2, 4, 33, 32).transpose(1, 2), table(32, 32, 2)
    agrees(
        lambda x: rope_2d((x * 1), sin, cos, num_prefix_tokens=1),
        lambda x: rotate(x, sin.to(x.dtype), cos.to(x.dtype), 4, 1, None),
        [heads],
    )


def test_it_writes_where_the_heads_lie_and_nowhere_else(guarded):
    qkv = guarded(torch.randn(1, 5, 6, 8))
    before, (sin, cos) = qkv.clone(), table(5, 8)
    assert rope_2d(qkv, sin, cos, num_rotated=4).data_ptr() == qkv.data_ptr()
    assert torch.equal(qkv[:, :, 4:], before[:, :, 4:])
    assert not torch.equal(qkv[:, 1:, :4], before[:, 1:, :4])
    assert qkv._base.isnan().sum() == 16 * 8


def test_torch_approves_of_the_op_and_compiles_it_whole():
    linear, (sin, cos) = torch.nn.Linear(8, 3 * 4 * 8), table(4, 8)
    tokens = torch.randn(2, 5, 8)
    inputs = (torch.randn(2, 5, 12, 8), *(t.expand(2, -1, -1) for t in (sin, cos)), 8, 1, None)
    torch.library.opcheck(torch.ops.vfm_kernels.rope_2d_.default, inputs)
    torch.library.opcheck(torch.ops.vfm_kernels.rope_2d_inverse.default, inputs)

    def loss(tokens: Tensor) -> Tensor:
        heads = linear(tokens).view(2, 5, 12, 8)
        return rope_2d(heads, sin, cos, num_rotated=8, num_prefix_tokens=1).sin().sum()

    def gradient(function) -> Tensor:
        return torch.autograd.grad(function(tokens), linear.weight)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(gradient(compiled), gradient(loss))
