"""Models of timm and open_clip with all ops on, against themselves without: logits and gradients."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vfm_kernels import accelerate, pad_swiglu

timm = pytest.importorskip("timm")
IMAGES = torch.randn(2, 3, 16, 16)


def scrambled(model: nn.Module) -> nn.Module:
    """With parameters that make every part matter; some start at zero or one."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25)
    return model


def eva(**arguments) -> nn.Module:
    options = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True, "init_values": 0.5}
    return scrambled(
        timm.models.eva.Eva(
            img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, mlp_ratio=2.625,
            **(options | arguments),
        )
    )  # fmt: skip


def vit() -> nn.Module:
    return scrambled(
        timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, init_values=0.5
        )
    )


def gradients(model: nn.Module, images: Tensor, autocast: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(1)  # drop path and patch dropout draw alike
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(images)
    logits.float().square().sum().backward()
    found = {name.removeprefix("module.").replace("_orig_mod.", ""): p.grad for name, p in model.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None} | {"logits": logits.detach()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = value.float().abs().max().item()
        torch.testing.assert_close(
            ours[name].float(), value.float(), rtol=0, atol=tolerance * scale + 1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (eva(), {"add_layer_norm": 2, "rope_2d": 2, "swiglu_subln": 2}),
        (eva(qkv_fused=True, scale_attn_inner=True), {"add_layer_norm": 2, "rope_2d": 2, "swiglu_subln": 2}),
        (eva(patch_drop_rate=0.5, drop_path_rate=0.4), {"add_layer_norm": 2, "rope_2d": 2, "swiglu_subln": 2}),
        (vit(), {"add_layer_norm": 2}),
    ],
    ids=["EVA-02", "EVA-02 CLIP, packed", "EVA-02 with drops", "ViT"],
)
def test_logits_and_gradients_are_equal_and_undone(model, expected):
    theirs = gradients(model, IMAGES)
    with accelerate(model) as done:
        counts = {op: list(done.replaced.values()).count(op) for op in set(done.replaced.values())}
        assert counts == expected
        assert_same(gradients(model, IMAGES), theirs)
    assert_same(gradients(model, IMAGES), theirs, 0)
    assert type(model.blocks[0]).__name__ in ("EvaBlock", "Block")


def test_it_holds_for_padded_weights_and_a_copy():
    model = eva()
    theirs = gradients(model, IMAGES)
    pad_swiglu(model)
    assert (
        str(accelerate(model)) == "kernels: add_layer_norm in 2 layers, rope_2d in 2 layers, swiglu_subln in 2 layers"
    )
    ours = gradients(copy.deepcopy(model), IMAGES)
    cut = {name: grad[tuple(map(slice, theirs[name].shape))] for name, grad in ours.items()}
    assert_same(cut, theirs)


def test_it_holds_under_autocast():
    model = eva()
    exact, theirs = gradients(model, IMAGES), gradients(model, IMAGES, autocast=True)
    with accelerate(model):
        ours = gradients(model, IMAGES, autocast=True)
    assert ours["logits"].dtype == theirs["logits"].dtype
    error, allowed = (sum((g[n].float() - exact[n]).norm() for n in exact) for g in (ours, theirs))
    assert error <= 2 * allowed


def test_it_holds_with_activation_checkpointing_and_whole_graph_compilation():
    model = eva()
    theirs = gradients(model, IMAGES)
    with accelerate(model):
        assert_same(gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), IMAGES), theirs)
        model.set_grad_checkpointing()
        assert_same(gradients(model, IMAGES), theirs)


def test_it_holds_under_ddp(tmp_path):
    model = eva()
    theirs = gradients(model, IMAGES)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with accelerate(model):
            assert_same(gradients(nn.parallel.DistributedDataParallel(model), IMAGES), theirs)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("custom", [False, True])
def test_open_clips_blocks(custom):
    transformer = pytest.importorskip("open_clip.transformer")
    kind = transformer.CustomResidualAttentionBlock if custom else transformer.ResidualAttentionBlock
    model = nn.Sequential(scrambled(kind(16, 2, ls_init_value=0.5)))
    tokens = torch.randn(2, 5, 16)
    theirs = gradients(model, tokens)
    with accelerate(model) as done:
        assert done.replaced == {"0": "add_layer_norm"}
        assert_same(gradients(model, tokens), theirs)


def test_what_is_left_alone_is_told():
    options = {"swiglu_mlp": False, "norm_layer": timm.layers.RmsNorm}
    with accelerate(eva(**options)) as done:
        assert set(done.replaced.values()) == {"rope_2d"}
        assert done.kept["blocks.1"] == "its second norm is RmsNorm"
        assert str(done) == "kernels: rope_2d in 2 layers"
    with pytest.raises(ValueError, match=r"blocks.0.attn: its model gives it no rotary positions"):
        accelerate(eva(use_rot_pos_emb=False, **options))
    with pytest.raises(ValueError, match="none is known"):
        accelerate(nn.Linear(2, 2))
