"""`runtime.kernels`: on a CPU `auto` runs the libraries' own modules, bit for bit; kernels have equal gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from eva_toy import context, losses, make_task, make_teacher, random_inputs, stage
from vfm.data import map_tensors
from vfm.models import build_vision
from vfm.plugin import UserError
from vfm_eva.finetune.classifier import Classifier
from vfm_eva.targets.teacher import load_teacher


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_on_a_cpu_no_module_is_replaced(teacher, choice):
    student = make_task(load_teacher(teacher, stage().target))
    for task in (student, Classifier(build_vision("vit_pico_patch8_32", num_classes=2, seed=0))):
        before = [type(module) for module in task.modules()]
        with task.kernels(choice) as running:
            assert [type(module) for module in task.modules()] == before
        assert running == "the libraries' own forward"


def test_on_a_cpu_auto_and_reference_train_to_the_same_bits(tmp_path, pool, teacher):
    weights = {}
    for choice in ("auto", "reference"):
        folder = tmp_path / choice
        runtime = {"device": "cpu", "kernels": choice}
        made = stage(steps=3, student={"drop_path": 0.2}, runtime=runtime).run(
            context(folder, pool=pool, teacher=teacher)
        )
        weights[choice] = (made.path / "model.safetensors").read_bytes()
    assert losses(tmp_path / "auto") == losses(tmp_path / "reference")
    assert weights["auto"] == weights["reference"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_forced_kernels_are_refused_on_a_cpu(tmp_path, pool, teacher):
    config = stage(runtime={"device": "cpu", "kernels": "triton"})
    with pytest.raises(UserError, match=r"runtime\.kernels: .*a CUDA device"):
        config.run(context(tmp_path, pool=pool, teacher=teacher))


def test_kernels_have_the_gradients_of_the_reference():
    """Compare them in Triton's interpreter, in another process, since it is chosen when Triton is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "add_layer_norm in 4 layers, attention in 4 layers\n"


def gradients(task, inputs, choice):
    task.zero_grad()
    torch.manual_seed(0)
    with task.kernels(choice) as running:
        task(inputs)[0].backward()
    return running, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        task = make_task(load_teacher(make_teacher(Path(folder)), stage().target)).train()
    inputs = map_tensors(random_inputs(), lambda value: value[:1])
    (_, theirs), (running, ours) = (gradients(task, inputs, choice) for choice in ("reference", "triton"))
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=0, atol=1e-5 * grad.abs().max().item())
    print(running)
