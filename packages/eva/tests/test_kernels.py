"""`runtime.kernels`: on a CPU `auto` is the library's own path, bit for bit, and no module is another than before."""

from __future__ import annotations

import pytest
import torch

from eva_toy import context, losses, make_task, stage
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
