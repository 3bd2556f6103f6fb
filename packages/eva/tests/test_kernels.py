"""`runtime.kernels`: on a CPU `auto` is the library's own path, to the bit and module; with kernels all is equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from eva_toy import context, losses, make_task, make_teacher, random_batch, stage
from vfm import UserError
from vfm.models import build_vision
from vfm_eva.finetune_task import Classifier


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_on_a_cpu_no_module_is_replaced(teacher, choice):
    student = make_task(stage().target.teacher(teacher))
    for task in (student, Classifier(build_vision("vit_pico_patch8_32", num_classes=2, seed=0))):
        before = [type(module) for module in task.modules()]
        with task.kernels(choice) as running:
            assert [type(module) for module in task.modules()] == before
        assert running == "the libraries' own forward"


def test_auto_trains_on_a_cpu_as_the_reference_does_bit_for_bit(tmp_path, pool, teacher):
    weights = {}
    for choice in ("auto", "reference"):
        folder = tmp_path / choice
        runtime = {"device": "cpu", "kernels": choice}
        made = stage(steps=3, drop_path=0.2, runtime=runtime).run(context(folder, pool=pool, teacher=teacher))
        weights[choice] = (made.path / "model.safetensors").read_bytes()
    assert losses(tmp_path / "auto") == losses(tmp_path / "reference")
    assert weights["auto"] == weights["reference"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_forced_kernels_are_refused_on_a_cpu(tmp_path, pool, teacher):
    config = stage(runtime={"device": "cpu", "kernels": "triton"})
    with pytest.raises(UserError, match=r"runtime\.kernels: .*need a CUDA device"):
        config.run(context(tmp_path, pool=pool, teacher=teacher))


def test_with_kernels_the_gradients_are_the_references():
    """In Triton's interpreter, which is chosen when Triton is imported: in a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "add_layer_norm in 4 layers, attention in 2 layers\n"


def gradients(task, batch, choice):
    task.zero_grad()
    torch.manual_seed(0)
    with task.kernels(choice) as running:
        task(batch)[0].backward()
    return running, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        task = make_task(stage().target.teacher(make_teacher(Path(folder)))).train()
    batch = {name: value[:1] for name, value in random_batch().items()}
    batch["teacher_images"] = batch["images"]
    (_, theirs), (running, ours) = (gradients(task, batch, choice) for choice in ("reference", "triton"))
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=0, atol=1e-5 * grad.abs().max().item())
    print(running)
