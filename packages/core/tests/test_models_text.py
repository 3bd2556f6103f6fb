"""The tokenizer with a cache must agree with open_clip's, and encoding without padding with encoding with it."""

import pickle

import open_clip
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vfm.base import UserError
from vfm.models import WordTokenizer, build_clip
from vfm.models.clip import text as text_module
from vfm.models.clip.text import build_tokenizer, check_tokenizer, encode_text, encode_unpadded

PEER = open_clip.SimpleTokenizer(context_length=16)
OURS = WordTokenizer(PEER)
PEERS = {
    clean: open_clip.SimpleTokenizer(context_length=40, clean=clean)
    for clean in ("lower", "canonicalize", "whitespace")
}


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=5))
@settings(max_examples=200)
def test_tokens_of_any_text_equal_open_clips(texts):
    assert torch.equal(OURS(texts), PEER(texts))


@given(st.text(st.characters(max_codepoint=127), max_size=80), st.sampled_from(["lower", "canonicalize", "whitespace"]))
@settings(max_examples=200)
def test_plain_words_can_be_cleaned_one_by_one(text, clean):
    peer = PEERS[clean]
    assert torch.equal(WordTokenizer(peer)([text, text]), peer([text, text]))


@pytest.mark.parametrize(
    "text", ["a dog's ball", "<end_of_text> it isn't &amp;amp; 12 3", "Ein Käfer auf 草の上", "word " * 40, ""]
)
def test_entities_special_tokens_and_long_texts(text):
    for length in (None, 1, 7):
        assert torch.equal(OURS([text, text], length), PEER([text, text], length))
    assert torch.equal(pickle.loads(pickle.dumps(OURS))(text), PEER(text))


def test_cache_of_words_is_limited(monkeypatch):
    monkeypatch.setattr(text_module, "MAX_WORDS", 5)
    ours = WordTokenizer(open_clip.SimpleTokenizer(context_length=16))
    for number in range(40):
        text = f"a photo of the {number}th <end_of_text> dog" + "gy" * number
        assert torch.equal(ours(text), PEER(text))
        assert len(ours.words) <= 5
        assert len(ours.tokenizer.cache) <= 5 + len(ours.special)


def test_random_shortening_keeps_the_same_draws():
    peer = open_clip.SimpleTokenizer(context_length=4, reduction_mask="random")
    text = "one two three four five six"
    torch.manual_seed(0)
    expected = peer([text])
    torch.manual_seed(0)
    assert torch.equal(WordTokenizer(peer)([text]), expected)


TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXTS = ["a dog", "two birds on a wire", "", "one"]  # the longest has 7 tokens, with start and end token


def encode_both_ways(text_cfg, *, custom):
    """Return features without and with padding, and the number of positions that the tower computed each time."""
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT | text_cfg, "custom_text": custom}
    model = build_clip(config, seed=0)
    model.module.eval()
    tower, lengths = getattr(model.module, "text", model.module), []
    tower.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    tokens = model.tokenize(TEXTS)
    with torch.inference_mode():
        unpadded, padded = encode_unpadded(model.module, tokens, model.device), model.module.encode_text(tokens)
    return unpadded, padded, lengths


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("pooling", [{}, {"pool_type": "eos", "eos_id": 49407}])
def test_causal_tower_computes_only_the_positions_of_the_longest_text(pooling, custom):
    unpadded, padded, lengths = encode_both_ways(pooling, custom=custom)
    assert lengths == [7, 16]
    torch.testing.assert_close(unpadded, padded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text_cfg", [{"pool_type": "last"}, {"no_causal_mask": True}, {"embed_cls": True}])
def test_other_towers_compute_all_positions(text_cfg):
    unpadded, padded, lengths = encode_both_ways(text_cfg, custom=True)
    assert lengths == [16 + bool(text_cfg.get("embed_cls"))] * 2
    assert torch.equal(unpadded, padded)


@pytest.mark.parametrize("text_cfg", [{"pool_type": "last"}, {"no_causal_mask": True}, {"embed_cls": True}])
def test_other_towers_take_texts_that_are_shorter_than_their_context(text_cfg):
    long, short = (
        build_clip(
            {
                "embed_dim": 24,
                "vision_cfg": VISION,
                "text_cfg": {**TEXT, **text_cfg, "context_length": length},
                "custom_text": True,
            },
            seed=0,
        ).module.eval()
        for length in (16, 9)
    )
    weights = long.state_dict()
    weights["text.positional_embedding"] = weights["text.positional_embedding"][: 9 + bool(text_cfg.get("embed_cls"))]
    short.load_state_dict(weights)
    tokens = torch.randint(1, 100, (2, 9))
    with torch.inference_mode():
        assert torch.equal(encode_text(long, tokens), short.encode_text(tokens))


def test_a_class_token_takes_a_position_of_the_text_tower():
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT | {"embed_cls": True}, "custom_text": True}
    model = build_clip(config, seed=0)
    check_tokenizer(open_clip.SimpleTokenizer(context_length=16), model.module, "coca")
    with pytest.raises(UserError, match="coca: the tokenizer returns 17 tokens per text, the text tower has 16 pos"):
        check_tokenizer(open_clip.SimpleTokenizer(context_length=17), model.module, "coca")


def test_encode_texts_equals_encoding_with_padding():
    model = build_clip("ViT-Nano-8-32", seed=0)
    model.module.eval()
    with torch.inference_mode():
        padded = torch.nn.functional.normalize(model.module.encode_text(model.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(model.encode_texts(TEXTS), padded, rtol=0, atol=1e-6)
    assert model.module.positional_embedding.shape[0] == model.module.attn_mask.shape[0] == 32


def test_tokenizers_that_share_the_tables_of_open_clip_have_a_context_and_a_cache_of_their_own() -> None:
    short, whole = (build_tokenizer({}, length, "clip", None) for length in (5, 77))
    texts = ["a photo of a dog on a mat", "<end_of_text> naïve façade"]
    for tokenizer, length in ((short, 5), (whole, 77)):
        assert torch.equal(tokenizer(texts), open_clip.SimpleTokenizer(context_length=length)(texts))
    assert open_clip.tokenizer._tokenizer.context_length == 77
    assert "naïve" not in " ".join(open_clip.tokenizer._tokenizer.cache)
