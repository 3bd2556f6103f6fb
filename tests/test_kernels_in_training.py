"""Selective checkpointing and counts of operations know the attention of `vfm_kernels`, which core does not import."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from counted_operations import Counted
from vfm.train.cost.operations import Operations
from vfm.train.parallel.preparation import recomputed
from vfm_kernels.multihead.attention_op import attention_op, attention_packed_op

PATTERN = (None, None, None, 0, None, 5, False, 0.3, False)


class Attention(nn.Module):
    """Attention by our ops, and activations."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, qkv: Tensor) -> Tensor:
        heads = attention_packed_op(qkv, *PATTERN) if self.packed else attention_op(*qkv.unbind(2), *PATTERN)
        return nn.functional.gelu(heads[0]).sin()


@pytest.mark.parametrize("packed", [False, True])
def test_attention_is_kept_and_counted(packed: bool) -> None:
    name = "attention_packed" if packed else "attention"
    model, qkv = Attention(packed), torch.randn(2, 5, 3, 2, 8, requires_grad=True)
    results = []
    for modules in ([], [model]):
        with recomputed(modules), Counted() as counted, Operations() as operations:
            gradient = torch.autograd.grad(model(qkv).square().sum(), qkv)[0]
        results.append((counted.calls[name], operations.flops, gradient))
        assert counted.calls["gelu"] == 1 + len(modules)
    (calls, flops, expected), (again, flops_again, gradient) = results
    assert calls == again == 1
    assert flops == flops_again == 7 * 2 * 2 * 2 * 5 * 5 * 8
    assert torch.equal(gradient, expected)
