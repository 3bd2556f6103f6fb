"""Choice of the backend of an attention, the reasons against the others, and the report."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from vfm_kernels import attention, attention_packed, explain, use_kernels
from vfm_kernels.__main__ import main
from vfm_kernels.multihead import libraries
from vfm_kernels.multihead.backends import BACKENDS, BY_NAME, first_choice
from vfm_kernels.multihead.problem import Problem

HOPPER = Problem((8, 257, 16, 88), torch.bfloat16, "cuda", (9, 0), (), 257)


def reasons(name: str, problem: Problem = HOPPER, **changes) -> str:
    return "; ".join(BY_NAME[name].not_supported_reasons(dataclasses.replace(problem, **changes)))


def of_tokens(num_tokens: int, width: int = 64) -> Problem:
    return dataclasses.replace(HOPPER, shape=(8, num_tokens, 16, width), longest=num_tokens)


@pytest.fixture
def installed(monkeypatch):
    """Return a function that pretends which peers are installed and which cuDNN torch has."""

    def pretend(*modules: str, cudnn: int = 91501) -> None:
        absent = {"flash_attn.cute", "flash_attn_interface", "xformers.ops"} - set(modules)
        monkeypatch.setattr(
            libraries, "import_reasons", lambda module: (f"{module} is not installed",) if module in absent else ()
        )
        monkeypatch.setattr(libraries, "cudnn_version", lambda: cudnn)

    pretend()
    return pretend


@pytest.mark.parametrize(
    ("num_tokens", "width", "taken"),
    [
        (257, 64, "triton_short"),
        (257, 88, "triton_short"),
        (257, 104, "triton_stream"),
        (1025, 64, "triton_stream"),
        (257, 160, None),
    ],
)
def test_forced_kernels_take_the_one_for_few_tokens_where_it_runs(installed, num_tokens, width, taken):
    assert first_choice(of_tokens(num_tokens, width), "triton") == taken


def test_an_installed_peer_comes_before_torchs_own(installed):
    assert first_choice(of_tokens(577), "auto") == "sdpa_cudnn"
    assert first_choice(of_tokens(257, 160), "auto") == "sdpa_flash"
    installed("flash_attn_interface")
    assert first_choice(of_tokens(577), "auto") == "fa3"
    installed("flash_attn.cute", "flash_attn_interface")
    assert first_choice(of_tokens(577), "auto") == "fa4"
    assert first_choice(of_tokens(577), "triton") == "triton_stream"


def test_reference_takes_no_kernel_of_ours(installed):
    assert first_choice(HOPPER, "reference") == "sdpa_cudnn"
    assert first_choice(dataclasses.replace(HOPPER, varlen=True), "reference") == "sdpa_efficient"
    assert first_choice(dataclasses.replace(HOPPER, dtype=torch.float64), "auto") == "eager"


def test_cudnn_with_the_bug_is_not_used_where_it_matters(installed):
    installed(cudnn=91002)
    assert "cuDNN 9.10.2 reads beyond the end of 257 tokens" in reasons("sdpa_cudnn")
    assert reasons("sdpa_cudnn", of_tokens(256)) == ""
    assert first_choice(of_tokens(1025), "auto") == "sdpa_flash"
    installed(cudnn=91501)
    assert reasons("sdpa_cudnn") == ""


def test_reasons_against_a_backend(installed):
    assert "only Hopper's matrix products" in reasons("triton_short", capability=(8, 0))
    assert "273 tokens" in reasons("triton_short", of_tokens(273))
    assert "heads of 104" in reasons("triton_short", of_tokens(257, 104))
    assert "need triton_stream" in reasons("triton_short", causal=True)
    assert "multiple of 8" in reasons("triton_stream", of_tokens(257, 90))
    assert "fp16 and bf16" in reasons("triton_stream", dtype=torch.float32)
    assert "triton is not installed" in reasons("triton_stream", no_kernels=("triton is not installed",))
    assert "flash_attn_interface is not installed" in reasons("fa3")
    assert "not 9.0" in reasons("fa3", capability=(10, 0))
    assert "below 9.0" in reasons("fa4", capability=(8, 0))
    assert "xformers.ops is not installed" in reasons("xformers")
    assert "no variable length" in reasons("sdpa_flash", varlen=True)
    assert "device is cpu" in reasons("sdpa_efficient", device="cpu")


def test_a_library_is_found_by_its_import_not_by_its_file(tmp_path, monkeypatch):
    """A flash_attn without its own dependencies, or one built for another torch, is found as a file."""
    (tmp_path / "broken_flash").mkdir()
    (tmp_path / "broken_flash/__init__.py").write_text("")
    (tmp_path / "broken_flash/cute.py").write_text("import cutlass_that_is_absent")
    (tmp_path / "other_abi.py").write_text("raise ImportError('undefined symbol: _ZN3c104cuda\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    reasons_of = libraries.import_reasons
    assert reasons_of("broken_flash.cute") == (
        "broken_flash.cute needs cutlass_that_is_absent, which is not installed",
    )
    assert reasons_of("other_abi") == ("the import of other_abi fails: ImportError: undefined symbol: _ZN3c104cuda",)
    assert reasons_of("absent_flash.cute") == ("absent_flash is not installed",)
    assert reasons_of("json") == ()


def test_a_forced_backend_that_cannot_run_raises_with_reasons():
    q = torch.randn(1, 5, 2, 8)
    for backend in BACKENDS:
        if backend.name not in ("sdpa", "eager"):
            with pytest.raises(ValueError, match=f"backend {backend.name} cannot run here: .*device is cpu"):
                attention(q, q, q, backend=backend.name)
    with pytest.raises(ValueError, match="choose from triton_short, triton_stream, fa4"):
        attention_packed(torch.stack([q, q, q], dim=2), backend="fastest")
    with use_kernels("triton"), pytest.raises(ValueError, match=r"triton_short: device is cpu.*triton_stream: device"):
        attention(q, q, q)


def test_explain_prints_every_backend(capsys):
    q = torch.randn(1, 5, 2, 8)
    explain(q, q, q, causal=True)
    printed = capsys.readouterr().out
    assert "attention of (1, 5, 2, 8) in float32 on cpu, causal" in printed
    assert all(f"  {backend.name} " in printed for backend in BACKENDS)
    assert "sdpa            chosen" in printed
    assert "triton_short    cannot run: device is cpu; kernels need a CUDA device" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_the_command_reports_for_hopper_without_a_gpu():
    command = [sys.executable, "-m", "vfm_kernels", "explain", "--shape", "8,257,16,88", "--dtype", "bf16"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "attention of (8, 257, 16, 88) in bfloat16 on sm_90\nthis machine has no CUDA device" in printed
    assert all(f"\n  {backend.name} " in printed for backend in BACKENDS)


def test_a_mistyped_shape_is_one_line(capsys):
    for shape in ("8,257,16", "8,257,16,x", "8,0,16,64"):
        with pytest.raises(SystemExit):
            main(["explain", "--shape", shape])
        assert "--shape" in capsys.readouterr().err.splitlines()[-1]
