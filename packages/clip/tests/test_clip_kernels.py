"""`runtime.kernels`: on a CPU `auto` runs the libraries' own modules, bit for bit; kernels have equal gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from clip_world import EVA, VIT, Random, make_pool, plan, tiny_task
from vfm.plugin import Context, UserError


@pytest.mark.parametrize("config", [VIT, EVA], ids=["ViT", "EVA-02"])
@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_on_a_cpu_no_module_is_replaced(config, choice):
    task = tiny_task(config, "distillation")
    modules = [*task.modules(), *task.frozen_teacher.module.modules()]
    before = [type(module) for module in modules]
    with task.kernels(choice) as running:
        assert [type(module) for module in modules] == before
    assert running == "the libraries' own forward"


def train(folder, pool, choice):
    """Return the weights after three steps."""
    ctx = Context("clip", folder / "artifact", folder / "work", {"pool": pool.path})
    ctx.directory.mkdir(parents=True)
    runtime = {"device": "cpu", "kernels": choice}
    made = plan(steps=3, micro_batch_size=6, loss={"chunk_size": 5}, runtime=runtime).run(ctx)
    return (made.path / "open_clip_model.safetensors").read_bytes()


def test_on_a_cpu_auto_and_reference_train_to_the_same_bits(tmp_path):
    pool = make_pool(tmp_path / "pool")
    assert train(tmp_path / "auto", pool, "auto") == train(tmp_path / "reference", pool, "reference")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_forced_kernels_are_refused_on_a_cpu(tmp_path):
    with pytest.raises(UserError, match=r"runtime\.kernels: .*a CUDA device"):
        train(tmp_path, make_pool(tmp_path / "pool"), "triton")


def test_kernels_have_the_gradients_of_the_reference():
    """Compare them in Triton's interpreter, in another process, since it is chosen when Triton is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "add_layer_norm in 6 layers, attention in 6 layers\n"


def gradients(task, batch, choice):
    task.zero_grad()
    torch.manual_seed(0)
    with task.kernels(choice) as running:
        task(batch.inputs)[0].backward()
    return running, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    task = tiny_task(EVA, "distillation", chunk_size=2).train()
    batch = Random(EVA, 3).batch(0)
    (_, theirs), (running, ours) = (gradients(task, batch, choice) for choice in ("reference", "triton"))
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=0, atol=1e-5 * grad.abs().max().item())
    print(running)
