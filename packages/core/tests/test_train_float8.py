"""FP8 products equal a plain twin that rounds, are used in training only, and leave the model as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from test_train_layers import CPU, losses, tower
from train_toy import Deep, in_processes, plan, train
from vfm.base import UserError
from vfm.interfaces import Context
from vfm.train.parallel.float8 import float8_products

pytest.importorskip("torchao", reason="vfm-core[fp8] is not installed")
SETTINGS: dict[str, Any] = {"steps": 24, "log_every": 1, "lr": 0.01, "checkpoint": {"every_steps": 12, "keep_last": 2}}
LAST = "work/step-00000024/model.safetensors"


def context(folder: Path) -> Context:
    return Context("toy", folder, folder, {})


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to FP8 with one scale, by which the largest value becomes the largest of the format."""
    scale = torch.finfo(dtype).max / values.abs().max()
    return (values * scale).to(dtype).float() / scale


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The toy trained in one process, with FP8 and without."""
    root = tmp_path_factory.mktemp("trained")
    for precision in ("amp_bf16", "amp_fp8"):
        train(root / precision, plan(**SETTINGS, precision=precision), task=Deep())
    return root


def test_products_equal_those_of_rounded_factors_forward_and_backward(tmp_path):
    task = Deep()
    layer, x, grad = task.net[1][0][0], torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    with float8_products(task, context(tmp_path), CPU):
        out = layer(x)
        out.backward(grad)
    narrow_x, narrow_weight = (rounded(values.detach(), torch.float8_e4m3fn) for values in (x, layer.weight))
    narrow_grad = rounded(grad, torch.float8_e5m2)
    torch.testing.assert_close(out, narrow_x @ narrow_weight.T + layer.bias, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, narrow_grad @ narrow_weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, narrow_grad.T @ narrow_x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, grad.sum(0))
    assert (out - F.linear(x, layer.weight, layer.bias)).abs().max() > 1e-3  # coarser than fp32


def test_only_layers_in_blocks_are_converted_and_only_in_training_mode(tmp_path):
    task, x = Deep(), torch.randn(8, 4)
    names, plain = list(task.state_dict()), task.net(x)
    with float8_products(task, context(tmp_path), CPU):
        assert list(task.state_dict()) == names
        assert type(task.net[0]) is type(task.net[2]) is nn.Linear
        assert not torch.equal(task.net(x), plain)
        task.eval()
        assert torch.equal(task.net(x), plain)
    assert {type(module) for module in task.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert vars(task.net[1][0][0]).keys() == vars(nn.Linear(1, 1)).keys()


def test_training_in_fp8_learns_as_in_bf16_and_resumes_with_the_same_bits(trained):
    half, narrow = losses(trained / "amp_bf16"), losses(trained / "amp_fp8")
    assert half != narrow
    assert narrow == pytest.approx(half, rel=0.1, abs=0.05)
    assert narrow[-1] < narrow[0] / 2
    weights = load_file(trained / "amp_fp8" / LAST)
    assert weights.keys() == load_file(trained / "amp_bf16" / LAST).keys()
    (trained / "amp_fp8" / LAST).unlink()  # damaged, so that the run resumes from step 12
    train(trained / "amp_fp8", plan(**SETTINGS, precision="amp_fp8"), task=Deep())
    again = load_file(trained / "amp_fp8" / LAST)
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_two_processes_with_ddp_and_fsdp_learn_as_one(trained):
    """Not to the bit, since each process scales by its own largest values."""
    runs = {"ddp": {"device": "cpu"}, "fsdp": {"device": "cpu", "parallel": "fsdp"}}
    jobs = [
        {
            "folder": name,
            "deep": True,
            "plan": plan(**SETTINGS, precision="amp_fp8", runtime=runtime).model_dump(mode="json"),
        }
        for name, runtime in runs.items()
    ]
    in_processes(2, trained, jobs)
    alone = losses(trained / "amp_fp8")
    for name in runs:
        assert losses(trained / name) == pytest.approx(alone, rel=0.1, abs=0.05)
        assert losses(trained / name) != alone


def test_unsuitable_widths_and_a_missing_library_are_one_line(tmp_path, monkeypatch):
    task = Deep()
    task.net = tower()
    with pytest.raises(UserError, match=r"toy: precision: amp_fp8 .* multiples of 16; Deep has 4 .* none of such"):
        float8_products(task, context(tmp_path), CPU).__enter__()
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r"amp_fp8 needs torchao: .*core\[fp8\]"):
        float8_products(Deep(), context(tmp_path), CPU).__enter__()
