"""Padded weights: the same outputs, bit-equal checkpoints, and zeros that stay zero; identities in float64."""

import copy
import io

import pytest
import torch

from vfm_kernels import pad_patch_embed, pad_swiglu, padded

timm = pytest.importorskip("timm")


def eva(**arguments):
    """Return a tiny EVA-02 with SwiGLU and sub-LN of 42 hidden channels, and patches of 6 x 6 x 3 = 108 values."""
    torch.manual_seed(0)
    model = timm.models.eva.Eva(
        img_size=12, patch_size=6, embed_dim=16, depth=2, num_heads=2, mlp_ratio=42 / 16, swiglu_mlp=True,
        scale_mlp=True, use_rot_pos_emb=True, num_classes=3, qkv_fused=False, **arguments,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def padded_eva():
    model = eva()
    assert list(pad_swiglu(model).replaced) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert pad_patch_embed(model).replaced == {"patch_embed.proj": "patch embedding of 108 as 112"}
    return model


def test_outputs_and_gradients_are_those_of_the_unpadded_model():
    plain, padded, images = eva(), padded_eva(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    assert padded.blocks[0].mlp.fc2.weight.shape == (16, 64)
    assert padded.patch_embed.proj.weight.shape == (16, 112)
    torch.testing.assert_close(padded(images), plain(images), rtol=1e-12, atol=1e-12)
    for model in (plain, padded):
        model(images).square().sum().backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in padded.named_parameters():
        ours, theirs = parameter.grad, gradients[name].flatten(1) if gradients[name].ndim == 4 else gradients[name]
        torch.testing.assert_close(ours[tuple(map(slice, theirs.shape))], theirs, rtol=1e-10, atol=1e-12)


def test_checkpoints_are_bitwise_those_of_the_unpadded_model():
    plain, padded = eva(), padded_eva()
    files = [io.BytesIO(), io.BytesIO()]
    for model, file in zip((plain, padded), files, strict=True):
        torch.save(model.state_dict(), file)
    assert files[0].getvalue() == files[1].getvalue()
    other = eva()
    torch.nn.init.normal_(other.blocks[1].mlp.fc1_g.weight)
    padded.load_state_dict(other.state_dict())
    plain.load_state_dict(padded.state_dict())
    assert torch.equal(plain.blocks[1].mlp.fc1_g.weight, other.blocks[1].mlp.fc1_g.weight)
    assert not padded.blocks[1].mlp.fc1_g.weight[42:].any()


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])
def test_padding_stays_zero_and_training_is_the_same(make):
    plain, padded, images = eva(), padded_eva(), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    for model in (plain, padded):
        optimizer = make(model.parameters(), lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    for block in padded.blocks:
        assert not block.mlp.fc1_g.weight[42:].any()
        assert not block.mlp.fc1_x.bias[42:].any()
        assert not block.mlp.fc2.weight[:, 42:].any()
    assert not padded.patch_embed.proj.weight[:, 108:].any()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], value, rtol=1e-8, atol=1e-10)


def test_a_copy_is_padded_too_and_fitting_widths_are_skipped():
    twin = copy.deepcopy(padded_eva())
    assert twin.state_dict()["blocks.0.mlp.fc2.weight"].shape == (16, 42)
    assert not pad_swiglu(eva(), multiple=42).replaced


def test_undo_restores_the_model_and_parameters_keep_their_identity():
    model, images = eva(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    before, parameters = copy.deepcopy(model), list(model.parameters())
    model.patch_embed.proj.weight.register_hook(
        lambda grad: grad * 0.5
    )  # as a task with a lower learning rate for it does
    model(images).sum().backward()
    halved = model.patch_embed.proj.weight.grad.flatten(1)
    with padded(model) as description:
        assert description == "SwiGLU of 42 as 64 in 2 layers, patch embedding of 108 as 112 in 1 layer"
        model(images).sum().backward()
        torch.testing.assert_close(model.patch_embed.proj.weight.grad[:, :108], halved, rtol=1e-10, atol=1e-12)
    assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
    assert repr(model) == repr(before)
    assert all(mine is its for mine, its in zip(model.parameters(), parameters, strict=True))
    for name, parameter in before.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    assert not model.patch_embed.proj._state_dict_hooks
    model(images).sum().backward()


def test_open_clips_patch_embedding_is_padded_too():
    transformer = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    tower = transformer.VisionTransformer(12, 6, width=16, layers=1, heads=2, mlp_ratio=2, output_dim=4)
    tower = tower.double()
    images, before = torch.randn(2, 3, 12, 12, dtype=torch.float64), copy.deepcopy(tower.state_dict())
    theirs = tower(images)
    with padded(tower) as description:
        assert description == "patch embedding of 108 as 112 in 1 layer"
        torch.testing.assert_close(tower(images), theirs, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_layers_of_other_classes_than_torchs_are_skipped():
    model = eva()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[1].mlp.fc2)
    done = pad_swiglu(model)
    assert list(done.replaced) == ["blocks.0.mlp"]
    assert done.skipped == {"blocks.1.mlp": "its linear layers are not torch's own"}
    with padded(model.blocks[1]) as description:
        assert description == "nothing, its linear layers are not torch's own"
    with padded(torch.nn.Linear(2, 2)) as description:
        assert description == "nothing, no width needs it"


def test_a_model_without_such_layers_raises():
    with pytest.raises(ValueError, match="no SwiGLU"):
        pad_swiglu(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no patch embedding"):
        pad_patch_embed(torch.nn.Linear(2, 2))
