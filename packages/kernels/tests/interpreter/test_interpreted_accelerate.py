"""Logits and gradients of models of timm and open_clip with all ops against those without."""

import copy

import pytest
import torch
from torch import Tensor, nn

from error_rule import assert_as_exact
from vfm_kernels import accelerate, pad_swiglu

timm = pytest.importorskip("timm")
timm_layers = pytest.importorskip("vfm_kernels.layers.timm_layers")
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


MLP = {"swiglu_mlp": False, "scale_mlp": False}
HALVES = {"rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 2}
MIXED = {"rope_type": "mixed", "rope_temperature": 10.0}
ROTARY = {
    "DINOv3": {**HALVES, "qkv_fused": True, "qkv_bias": False},
    "DINOv3 with biases": {**HALVES, "qkv_fused": True},
    "halves, separate": HALVES,
    "halves with QK norm": {**HALVES, "qkv_fused": True, "qk_norm": True},
    "halves with drops": {**HALVES, "qkv_fused": True, "patch_drop_rate": 0.5},
    "QK norm": {"qk_norm": True},
    "RoPE-ViT": {"attn_type": "rope", "qkv_fused": True},
    "RoPE-ViT, mixed": {**MIXED, "attn_type": "rope", "qkv_fused": True},
    "mixed, separate": MIXED,
    "mixed with drops": {**MIXED, "attn_type": "rope", "qkv_fused": True, "patch_drop_rate": 0.5},
}


def scrambled(model: nn.Module) -> nn.Module:
    """Draw parameters that make every part matter; some start at zero or one."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25)
    return model


def eva(**arguments) -> nn.Module:
    options = {
        "embed_dim": 16,
        "qkv_fused": False,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "use_rot_pos_emb": True,
        "init_values": 0.5,
    }
    return scrambled(
        timm.models.eva.Eva(
            img_size=16, patch_size=8, depth=2, num_heads=2, num_classes=3, mlp_ratio=2.625,
            **(options | arguments),
        )
    )  # fmt: skip


def eva_g() -> nn.Module:
    """Return an EVA without angles, with heads of 24, which the kernels pad as they pad EVA-g's 88."""
    plain = {"swiglu_mlp": False, "scale_mlp": False, "use_rot_pos_emb": False, "init_values": None}
    return eva(qkv_fused=True, embed_dim=48, **plain)


def vit(**arguments) -> nn.Module:
    options = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3, "init_values": 0.5}
    return scrambled(timm.models.VisionTransformer(img_size=16, patch_size=8, **(options | arguments)))


def gradients(model: nn.Module, images: Tensor, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(1)  # the same draws of drop path and patch dropout
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        logits = model(images)
    logits.float().square().sum().backward()
    found = {name.removeprefix("module.").replace("_orig_mod.", ""): p.grad for name, p in model.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None} | {"logits": logits.detach()}


def exact_gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the library's gradients in float64, which draw the same noise."""
    return gradients(copy.deepcopy(model).double(), images.double())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (eva(), {"add_layer_norm": 2, "attention": 2, "swiglu_subln": 2}),
        (eva(qkv_fused=True, scale_attn_inner=True), {"add_layer_norm": 2, "attention": 2, "swiglu_subln": 2}),
        (eva(patch_drop_rate=0.5, drop_path_rate=0.4), {"add_layer_norm": 2, "attention": 2, "swiglu_subln": 2}),
        (eva_g(), {"add_layer_norm": 2, "attention": 2}),
        (vit(), {"add_layer_norm": 2, "attention": 2}),
        (vit(qk_norm=True, scale_attn_norm=True), {"add_layer_norm": 2, "attention": 2}),
        *((eva(**MLP, **arguments), {"add_layer_norm": 2, "attention": 2}) for arguments in ROTARY.values()),
    ],
    ids=["EVA-02", "EVA-02 CLIP, packed", "EVA-02 with drops", "EVA-g", "ViT", "ViT with norms", *ROTARY],
)
def test_logits_and_gradients_are_equal_and_undone(model, expected):
    theirs, exact = gradients(model, IMAGES), exact_gradients(model, IMAGES)
    with accelerate(model) as done:
        counts = {op: list(done.replaced.values()).count(op) for op in set(done.replaced.values())}
        assert counts == expected
        assert_as_exact(gradients(model, IMAGES), theirs, exact)
    again = gradients(model, IMAGES)
    assert all(torch.equal(again[name], value) for name, value in theirs.items())
    assert type(model.blocks[0]).__name__ in ("EvaBlock", "Block")


def test_it_holds_for_padded_weights_and_a_copy():
    model = eva()
    theirs, exact = gradients(model, IMAGES), exact_gradients(model, IMAGES)
    pad_swiglu(model)
    assert str(accelerate(model)) == "add_layer_norm in 2 layers, attention in 2 layers, swiglu_subln in 2 layers"
    ours = gradients(copy.deepcopy(model), IMAGES)
    cut = {name: grad[tuple(map(slice, theirs[name].shape))] for name, grad in ours.items()}
    assert_as_exact(cut, theirs, exact)


def norms_in_passes(monkeypatch, module, model: nn.Module, images: Tensor) -> int:
    """Return how many sums and norms a forward pass computes together."""
    count, add = 0, module.add_layer_norm

    def counted(*arguments, **options):
        nonlocal count
        count += 1
        return add(*arguments, **options)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(module, "add_layer_norm", counted)
        model(images)
    return count


@pytest.mark.parametrize("make", [eva, vit], ids=["EVA-02", "ViT"])
def test_a_block_computes_the_first_norm_of_the_next_one_with_its_last_sum(monkeypatch, make):
    model = make().eval()
    double = copy.deepcopy(model).double()
    with accelerate(model):
        assert norms_in_passes(monkeypatch, timm_layers, model, IMAGES) == 3  # of the two blocks, and between them
        lone = copy.deepcopy(model.blocks[0])  # a copy knows no next block, and its result is the same
        tokens = torch.randn(2, 5, 16)
        assert torch.equal(lone(tokens), model.blocks[0](tokens))
        model.blocks[0].following.wanted = True
        handed = model.blocks[0](tokens)
        expected = model.blocks[1](handed.clone())
        assert_as_exact({"": model.blocks[1](handed)}, {"": expected}, {"": double.blocks[1](handed.double())})
        changed = model.blocks[0](tokens).mul_(2)  # no longer the sum that was normed
        assert torch.equal(model.blocks[1](changed), model.blocks[1](changed.clone()))
        assert norms_in_passes(monkeypatch, timm_layers, model, IMAGES) == 2  # not again where none was taken
        model.blocks[0].following.wanted = True
        assert norms_in_passes(monkeypatch, timm_layers, model, IMAGES) == 3
        seen: list[Tensor] = []
        model.blocks[1].norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert norms_in_passes(monkeypatch, timm_layers, model, IMAGES) == 2
        assert len(seen) == 1
    assert "following" not in model.blocks[0].__dict__


def test_open_clips_towers_hand_norms_over(monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    from vfm_kernels.layers import open_clip_layers

    model = scrambled(open_clip.transformer.VisionTransformer(16, 8, 32, 2, 2, 2.0, ls_init_value=0.5, output_dim=4))
    with torch.no_grad():
        theirs, exact = model(IMAGES), copy.deepcopy(model).double()(IMAGES.double())
        with accelerate(model):
            assert_as_exact({"": model(IMAGES)}, {"": theirs}, {"": exact})
            assert norms_in_passes(monkeypatch, open_clip_layers, model, IMAGES) == 3


MODELS = pytest.mark.parametrize(
    "make", [eva, eva_g, vit, lambda: vit(qk_norm=True)], ids=["EVA-02", "EVA-g", "ViT", "ViT with norms"]
)


@MODELS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_holds_under_autocast(make, dtype):
    model = make()
    exact, theirs = gradients(model, IMAGES), gradients(model, IMAGES, autocast=dtype)
    with accelerate(model):
        ours = gradients(model, IMAGES, autocast=dtype)
    assert ours["logits"].dtype == theirs["logits"].dtype
    error, allowed = (sum((g[n].float() - exact[n]).norm() for n in exact) for g in (ours, theirs))
    # Over several draws of each model our error was 0.87 to 1.05 times the library's. In one draw it is 2.1 times as
    # large for these norms, less than half a unit in the last place beyond twice.
    rounding = torch.finfo(dtype).eps / 2 * sum(value.norm() for value in exact.values())
    assert error <= 2 * allowed + rounding


@MODELS
def test_it_holds_with_activation_checkpointing_and_whole_graph_compilation(make):
    model = make()
    theirs, exact = gradients(model, IMAGES), exact_gradients(model, IMAGES)
    with accelerate(model):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_as_exact(gradients(compiled, IMAGES), theirs, exact)
        model.set_grad_checkpointing()
        assert_as_exact(gradients(model, IMAGES), theirs, exact)


def test_it_holds_under_ddp(tmp_path):
    model = eva()
    theirs, exact = gradients(model, IMAGES), exact_gradients(model, IMAGES)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with accelerate(model):
            assert_as_exact(gradients(nn.parallel.DistributedDataParallel(model), IMAGES), theirs, exact)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("custom", [False, True])
def test_open_clips_blocks(custom):
    transformer = pytest.importorskip("open_clip.transformer")
    kind = transformer.CustomResidualAttentionBlock if custom else transformer.ResidualAttentionBlock
    model = nn.Sequential(scrambled(kind(16, 2, ls_init_value=0.5)))
    tokens = torch.randn(2, 5, 16)
    theirs, exact = gradients(model, tokens), exact_gradients(model, tokens)
    with accelerate(model) as done:
        assert done.replaced == {"0": "add_layer_norm"} | ({} if custom else {"0.attn": "attention"})
        assert_as_exact(gradients(model, tokens), theirs, exact)


def test_torchs_attention_with_a_mask_as_in_text_towers_is_torchs():
    model = nn.Sequential(nn.MultiheadAttention(16, 2, batch_first=True))
    tokens, mask = torch.randn(2, 5, 16), torch.full((5, 5), float("-inf")).triu(1)

    def answers() -> list[Tensor]:
        layer = model[0]
        masked = layer(tokens, tokens, tokens, need_weights=False, attn_mask=mask)[0]
        _, weights = layer(tokens, tokens, tokens)
        cross = layer(tokens, tokens.flip(1), tokens.flip(1), need_weights=False)[0]
        return [masked, weights, cross]

    theirs = answers()
    with accelerate(model) as done:
        assert done.replaced == {"0": "attention"}
        assert all(torch.equal(o, t) for o, t in zip(answers(), theirs, strict=True))
    with pytest.raises(ValueError, match=r"0: its heads are 12 wide"):
        accelerate(nn.Sequential(nn.MultiheadAttention(24, 2, batch_first=True)))
    with pytest.raises(ValueError, match="its layout is not that of open_clip's image towers"):
        accelerate(nn.Sequential(nn.MultiheadAttention(16, 2)))


def test_layers_that_are_kept_have_reasons():
    options = {"swiglu_mlp": False, "norm_layer": timm.layers.RmsNorm}
    with accelerate(eva(**options)) as done:
        assert set(done.replaced.values()) == {"attention"}
        assert done.skipped["blocks.1"] == "its second norm is RmsNorm"
        assert str(done) == "attention in 2 layers"
    with pytest.raises(ValueError, match=r"blocks.0.attn: 2 of its heads share keys and values"):
        accelerate(eva(attn_type="rope", num_kv_heads=1, **options))
    with pytest.raises(ValueError, match=r"blocks.0.attn: its heads are 12 wide; the width must be a multiple of 8"):
        accelerate(eva(embed_dim=24, **options))
    with pytest.raises(ValueError, match="none is known"):
        accelerate(nn.Linear(2, 2))


@pytest.mark.parametrize("make", [lambda: eva(attn_drop_rate=0.5), lambda: vit(attn_drop_rate=0.5)])
def test_attention_with_dropout_a_mask_or_visible_weights_is_the_librarys(make):
    model, tokens = make(), torch.randn(2, 5, 16)
    mask = torch.rand(5, 5) > 0.3
    mask |= torch.eye(5, dtype=torch.bool)

    def answers() -> list[Tensor]:
        torch.manual_seed(2)
        layer = model.blocks[0].attn  # another module while the model is accelerated
        dropped = layer.train()(tokens)
        masked = layer.eval()(tokens, attn_mask=mask)
        causal = layer(tokens, is_causal=True)
        layer.fused_attn = False
        seen = layer(tokens)
        layer.fused_attn = True
        return [dropped, masked, seen, causal]

    theirs = answers()
    with accelerate(model):
        *same, causal = answers()
    assert all(torch.equal(o, t) for o, t in zip(same, theirs, strict=False))
    torch.testing.assert_close(causal, theirs[-1], rtol=1e-4, atol=1e-5)
