"""What `accelerate` does where no kernel runs: nothing."""

import pytest
import torch

from vfm_kernels import accelerate, use_kernels

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_on_a_cpu_the_model_is_left_alone(choice):
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    before = [type(module) for module in model.modules()]
    with use_kernels(choice), accelerate(model) as done:
        assert done.replaced == {}
        assert [type(module) for module in model.modules()] == before
        assert str(done) == "the libraries' own forward"


def test_forced_kernels_that_cannot_run_are_an_error():
    with use_kernels("triton"), pytest.raises(ValueError, match="need a CUDA device"):
        accelerate(torch.nn.Linear(2, 2))
