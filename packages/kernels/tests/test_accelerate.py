"""`accelerate` without kernels, and the replacement of layers itself."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vfm_kernels import Acceleration, accelerate, use_kernels
from vfm_kernels.dispatch import measured
from vfm_kernels.dispatch.choosing import Measurement

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_on_a_cpu_the_model_is_unchanged(choice):
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    before = [type(module) for module in model.modules()]
    with use_kernels(choice), accelerate(model) as done:
        assert done.replaced == {}
        assert [type(module) for module in model.modules()] == before
        assert str(done) == "the libraries' own forward"


def test_auto_replaces_layers_whose_kernel_was_measured_to_win(monkeypatch):
    """On fake CUDA tensors, since no GPU is needed to choose."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    with FakeTensorMode(), torch.device("cuda"):
        model = nn.Sequential(timm.models.vision_transformer.Block(192, 3))
        with accelerate(model) as done:
            assert done.replaced == {}
            assert "no measurement on this card says that attention of width 64" in done.skipped["0.attn"]
        times = {"triton_short": [1.0, 1.0, 1.0], "fa3": [1.25, 1.2, 1.3]}
        size = ("attention", "forward", 4096, 197, 64, "bfloat16")
        row = Measurement(*size, "H100", measured.versions(), times)
        monkeypatch.setattr(measured, "measurements", lambda: (row,))
        with accelerate(model) as done:
            assert done.replaced == {"0.attn": "attention"}
            assert str(done) == "attention in 1 layer (measured to save 0.25 to 0.25 ms a call)"
        with use_kernels("triton"), accelerate(model) as done:
            assert done.replaced == {"0": "add_layer_norm", "0.attn": "attention"}


def test_forced_kernels_that_cannot_run_raise():
    with use_kernels("triton"), pytest.raises(ValueError, match="need a CUDA device"):
        accelerate(torch.nn.Linear(2, 2))


class Doubled(nn.Linear):
    """A linear layer with twice its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_replaced_layer_shares_parameters_hooks_and_mode_and_returns_up_to_date():
    model, calls = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    layer, x = model[0], torch.randn(3, 2)
    expected = model[0](x)
    layer.register_forward_hook(lambda module, inputs, output: calls.append(type(module)))
    done = Acceleration()
    done.replace(model, "0", Doubled, "doubled")
    assert type(model[0]) is Doubled
    assert torch.equal(model[0](x), 2 * expected)
    assert torch.equal(copy.deepcopy(model)[0](x), 2 * expected)
    assert calls == [Doubled, Doubled]
    assert next(model.parameters()) is layer.weight
    model.eval().bfloat16()
    done.undo()
    assert model[0] is layer
    assert not layer.training
    assert layer.weight.dtype == torch.bfloat16


def test_the_model_itself_cannot_be_replaced():
    with pytest.raises(ValueError, match="expected a model that contains the layer, got the Linear itself"):
        Acceleration().replace(nn.Linear(2, 2), "", Doubled, "doubled")
