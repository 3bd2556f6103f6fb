"""Choice of implementation, and the plain forms without Triton."""

import subprocess
import sys

import pytest
import torch

from vfm_kernels import not_supported_reasons, swiglu_subln, use_kernels
from vfm_kernels.dispatch.dispatch import constant_when_compiled

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch, vfm_kernels
row, one = torch.randn(2, 4), torch.ones(4)
vfm_kernels.swiglu_subln(row, row, one, one)
torch.ops.vfm_kernels.swiglu_subln(row, row, one, one, 1e-6)
assert vfm_kernels.not_supported_reasons(row) == ["triton is not installed"]
"""


def test_without_triton_the_plain_forms_work():
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True)


def test_forced_kernels_on_a_cpu_raise():
    row, one = torch.randn(2, 4), torch.ones(4)
    with use_kernels("triton"), pytest.raises(ValueError, match="cannot run here"):
        swiglu_subln(row, row, one, one)
    with use_kernels("reference"):
        reference = swiglu_subln(row, row, one, one)
    assert torch.equal(reference, swiglu_subln(row, row, one, one))
    assert "torch.float64 is not supported" in not_supported_reasons(row.double())


def test_an_unknown_choice_raises():
    with (
        pytest.raises(ValueError, match="'fast' is not a valid choice of kernels; choose from auto, reference, triton"),
        use_kernels("fast"),
    ):
        pass


def test_the_mark_of_a_constant_is_torchs_own():
    peer = torch.compiler.assume_constant_result(lambda: 1)
    assert vars(constant_when_compiled(lambda: 1)) == vars(peer)


def test_importing_the_package_imports_no_compiler_and_no_models():
    script = (
        "import sys, vfm_kernels; print({'torch._dynamo', 'timm', 'open_clip', 'triton'}.intersection(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_on_a_cpu_auto_is_a_plain_graph_that_compiles_whole():
    row, one = torch.randn(2, 4, requires_grad=True), torch.ones(4)
    compiled = torch.compile(swiglu_subln, fullgraph=True, backend="eager")
    assert torch.equal(compiled(row, row, one, one), swiglu_subln(row, row, one, one))
    assert "vfm_kernels" not in str(swiglu_subln(row, row, one, one).grad_fn)
