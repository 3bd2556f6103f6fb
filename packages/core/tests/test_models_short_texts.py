"""Texts without their padding come out of a tower as with it."""

import pytest
import torch

from vfm.models import build_clip
from vfm.models.text import encode_unpadded

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXTS = ["a dog", "two birds on a wire", "", "one"]  # the longest has 7 tokens with its marks


def positions(text_cfg, *, custom):
    """A model, its tokens, the features of both ways and how many positions the tower computed."""
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT | text_cfg, "custom_text": custom}
    model = build_clip(config, seed=0)
    model.module.eval()
    tower, seen = getattr(model.module, "text", model.module), []
    tower.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    tokens = model.tokenize(TEXTS)
    with torch.inference_mode():
        short, full = encode_unpadded(model.module, tokens, model.device), model.module.encode_text(tokens)
    return short, full, seen


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("pooling", [{}, {"pool_type": "eos", "eos_id": 49407}])
def test_a_causal_tower_computes_the_longest_text(pooling, custom):
    short, full, seen = positions(pooling, custom=custom)
    assert seen == [7, 16]
    torch.testing.assert_close(short, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [{"pool_type": "last"}, {"no_causal_mask": True}, {"embed_cls": True}])
def test_any_other_tower_computes_all(text):
    short, full, seen = positions(text, custom=True)
    assert seen == [16 + bool(text.get("embed_cls"))] * 2
    assert torch.equal(short, full)


def test_the_model_encodes_so():
    model = build_clip("ViT-Nano-8-32", seed=0)
    model.module.eval()
    with torch.inference_mode():
        full = torch.nn.functional.normalize(model.module.encode_text(model.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(model.encode_texts(TEXTS), full, rtol=0, atol=1e-6)
    assert model.module.positional_embedding.shape[0] == model.module.attn_mask.shape[0] == 32
