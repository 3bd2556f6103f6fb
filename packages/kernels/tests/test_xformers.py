"""The backend `xformers` with xformers installed: it imports, and our reasons against it agree with its own."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from xformers.ops import LowerTriangularMask, fmha, memory_efficient_attention

from vfm_kernels import attention
from vfm_kernels.multihead import libraries
from vfm_kernels.multihead.backends import BY_NAME
from vfm_kernels.multihead.problem import hypothetical_problem


def own_reasons(shape, dtype, capability, causal, monkeypatch):
    """Return xformers' own reasons of each of its kernels, for tensors on a GPU that need not exist."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    with FakeTensorMode():
        q, k, v = (torch.empty(shape, dtype=dtype, device="cuda") for _ in range(3))
    inputs = fmha.Inputs(q, k, v, attn_bias=LowerTriangularMask() if causal else None)
    return {op.NAME: op.not_supported_reasons(inputs) for op in fmha.ALL_FW_OPS}


def test_it_imports_with_the_torch_that_is_pinned():
    assert libraries.import_reasons("xformers.ops") == ()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_where_we_see_no_reason_a_kernel_of_xformers_sees_none(capability, causal, monkeypatch):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for width in (64, 88, 90, 128, 256):
            problem = hypothetical_problem((2, 257, 4, width), dtype, capability, causal=causal)
            if not BY_NAME["xformers"].not_supported_reasons(problem):
                own = own_reasons(problem.shape, dtype, capability, causal, monkeypatch)
                assert [] in own.values(), (problem, own)


def test_on_a_cpu_both_refuse_and_name_the_device():
    q = torch.zeros(1, 4, 2, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"xformers.*device is cpu"):
        attention(q, q, q, backend="xformers")
    with pytest.raises(NotImplementedError, match="device=cpu"):
        memory_efficient_attention(q, q, q)
