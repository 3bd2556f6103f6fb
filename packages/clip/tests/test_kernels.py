"""`runtime.kernels`: on a CPU `auto` is the library's own path, bit for bit, and no module is another than before."""

from __future__ import annotations

import pytest
import torch

from clip_world import EVA, VIT, make_pool, plan, tiny_task
from vfm import Context, UserError


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
    """The weights after three steps."""
    ctx = Context("clip", folder / "artifact", folder / "work", {"pool": pool.path})
    ctx.directory.mkdir(parents=True)
    runtime = {"device": "cpu", "kernels": choice}
    made = plan(steps=3, micro_batch_size=6, loss_chunk_size=5, runtime=runtime).run(ctx)
    return (made.path / "open_clip_model.safetensors").read_bytes()


def test_auto_trains_on_a_cpu_as_the_reference_does_bit_for_bit(tmp_path):
    pool = make_pool(tmp_path / "pool")
    assert train(tmp_path / "auto", pool, "auto") == train(tmp_path / "reference", pool, "reference")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_forced_kernels_are_refused_on_a_cpu(tmp_path):
    with pytest.raises(UserError, match=r"runtime\.kernels: .*need a CUDA device"):
        train(tmp_path, make_pool(tmp_path / "pool"), "triton")
