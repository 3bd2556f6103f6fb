"""Every family of open_clip can be built by name, and patch dropout removes patches without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from vfm.base import UserError
from vfm.models import blueprint, build_clip

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
EVA = {"image_size": 32, "timm_model_name": "eva02_pico_patch8_32", "timm_pool": "token", "timm_proj": None}
TIMM_VIT = {**EVA, "timm_model_name": "vit_pico_patch8_32"}

FAMILIES = {  # one model each; all models of open_clip were built once by hand
    "ViT-B-32-quickgelu",
    "RN50",
    "convnext_base",
    "EVA02-B-16",
    "EVA01-g-14",
    "ViT-B-16-SigLIP2",
    "ViT-SO400M-14-SigLIP-384",  # six pixels remain beside its patches
    "ViT-H-14-worldwide-quickgelu",
    "ViT-L-14-worldwide",
    "ViTamin-S-LTT",
    "MobileCLIP-S1",
    "coca_ViT-B-32",
    "PE-Core-T-16-384",
    "swin_base_patch4_window7_224",
    "ViT-M-16-alt",
}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_open_clip_model_is_built_by_name(name: str) -> None:
    model = blueprint(name)
    config = open_clip.get_model_config(name)
    size = config["vision_cfg"].get("image_size", 224)
    assert (model.embed_dim, model.preprocess.image_size) == (config["embed_dim"], size)
    assert all(weight.is_meta for weight in model.module.parameters())


def test_text_towers_of_metaclip_2_have_the_vocabulary_of_their_tokenizer() -> None:
    for name, vocabulary in (("ViT-H-14-worldwide-quickgelu", 901629), ("ViT-L-14-worldwide", 250100)):
        assert blueprint(name).module.state_dict()["token_embedding.weight"].shape[0] == vocabulary


def test_missing_text_model_is_a_one_line_error(tmp_path: Path) -> None:
    text = {"hf_model_name": str(tmp_path / "nowhere"), "hf_proj_type": "linear"}
    with pytest.raises(UserError, match="CLIP model 'custom': ") as caught:
        blueprint({"embed_dim": 16, "vision_cfg": VIT, "text_cfg": text})
    assert "\n" not in str(caught.value)


def test_missing_tokenizer_is_a_one_line_error(tmp_path: Path) -> None:
    text = {**TEXT, "hf_tokenizer_name": str(tmp_path / "nowhere")}
    clip = blueprint({"embed_dim": 16, "vision_cfg": VIT, "text_cfg": text})
    with pytest.raises(
        UserError, match=r"custom: (cannot load )?its tokenizer .*nowhere'( needs transformers)?: "
    ) as caught:
        clip.tokenize(["a picture"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("vision", [VIT, TIMM_VIT, EVA], ids=["open_clip", "timm", "eva"])
def test_patch_dropout_keeps_the_class_token_and_each_patch_its_position(vision: dict[str, Any]) -> None:
    """Compare the class token with that of a tower whose attention to the dropped patches is masked."""
    clip = build_clip({"embed_dim": 16, "vision_cfg": {**vision, "patch_dropout": 0.5}, "text_cfg": TEXT}, seed=0)
    visual: Any = clip.module.visual
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.manual_seed(1)
        dropped = visual.train()(images)
        torch.manual_seed(1)
        kept = torch.argsort(torch.randn(3, 16), dim=-1)[:, :8]  # as timm draws
        visible = torch.zeros(3, 16, dtype=torch.bool).scatter(1, kept, torch.ones(3, 8, dtype=torch.bool))
        assert_close_to_masked_only(dropped, masked_features(visual.eval(), images, visible), visual(images))


def assert_close_to_masked_only(dropped: Tensor, masked: Tensor, whole: Tensor) -> None:
    torch.testing.assert_close(dropped, masked, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dropped, whole, rtol=1e-2, atol=1e-3)


def masked_features(visual: Any, images: Tensor, visible: Tensor) -> Tensor:
    """Return the tower's features with attention masked to the visible patches."""
    allowed = torch.cat([torch.ones(len(visible), 1, dtype=torch.bool), visible], 1)
    mask = allowed[:, None, :].expand(-1, allowed.shape[1], -1)  # (B, queries, keys)
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        tokens = trunk.forward_features(images, attn_mask=mask[:, None])
        return visual.head(trunk.forward_head(tokens))
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    heads = visual.transformer.resblocks[0].attn.num_heads
    tokens = visual.transformer(visual._embeds(images), attn_mask=bias.repeat_interleave(heads, 0))
    return visual._pool(tokens)[0] @ visual.proj


def test_patch_dropout_draws_on_the_device_of_the_tokens() -> None:
    """open_clip's own patch dropout draws on the CPU, timm's does not: every tower must have timm's."""
    for vision in (VIT, TIMM_VIT, EVA):
        clip = build_clip({"embed_dim": 16, "vision_cfg": {**vision, "patch_dropout": 0.5}, "text_cfg": TEXT})
        drops = [part for part in clip.module.modules() if type(part).__name__.startswith("PatchDropout")]
        assert [type(part) in (PatchDropout, PatchDropoutWithIndices) for part in drops] == [True]
    meta = blueprint({"embed_dim": 16, "vision_cfg": {**VIT, "patch_dropout": 0.5}, "text_cfg": TEXT})
    visual: nn.Module = meta.module.visual.train()  # type: ignore[union-attr,assignment]
    assert visual(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 16)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({**VIT, "timm_drop_path": 0.1}, "drop_path is for timm's encoders"),
        ({**VIT, "layers": [1, 1, 1, 1], "patch_dropout": 0.5}, "patch_dropout is for vision transformers"),
        (
            {**EVA, "timm_model_name": "resnet10t", "timm_pool": "avg", "patch_dropout": 0.5},
            "patch_dropout: its encoder resnet10t",
        ),
    ],
)
def test_unsupported_drop_path_and_patch_dropout_are_refused(vision: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_clip({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})
