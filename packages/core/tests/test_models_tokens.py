"""The faster tokenizer makes what open_clip's makes."""

import pickle

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vfm.models import WordTokenizer, text

PEER = open_clip.SimpleTokenizer(context_length=16)
OURS = WordTokenizer(PEER)
PEERS = {
    clean: open_clip.SimpleTokenizer(context_length=40, clean=clean)
    for clean in ("lower", "canonicalize", "whitespace")
}


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_open_clips_tokens(texts):
    assert torch.equal(OURS(texts), PEER(texts))


@given(st.text(st.characters(max_codepoint=127), max_size=80), st.sampled_from(["lower", "canonicalize", "whitespace"]))
@settings(max_examples=200, deadline=None)
def test_plain_words_are_cleaned_each_by_itself(text, clean):
    peer = PEERS[clean]
    assert torch.equal(WordTokenizer(peer)([text, text]), peer([text, text]))


@pytest.mark.parametrize(
    "text", ["a dog's ball", "<end_of_text> it isn't &amp;amp; 12 3", "Ein Käfer auf 草の上", "word " * 40, ""]
)
def test_words_marks_and_long_texts(text):
    for length in (None, 1, 7):
        assert torch.equal(OURS([text, text], length), PEER([text, text], length))
    assert torch.equal(pickle.loads(pickle.dumps(OURS))(text), PEER(text))


def test_no_more_words_are_remembered_than_a_worker_can_hold(monkeypatch):
    monkeypatch.setattr(tokens, "MAX_WORDS", 5)
    ours = WordTokenizer(open_clip.SimpleTokenizer(context_length=16))
    for number in range(40):
        text = f"a photo of the {number}th <end_of_text> dog" + "gy" * number
        assert torch.equal(ours(text), PEER(text))
        assert len(ours.words) <= 5
        assert len(ours.tokenizer.cache) <= 5 + len(ours.special)


def test_a_tokenizer_that_shortens_by_chance_does_so_still():
    peer = open_clip.SimpleTokenizer(context_length=4, reduction_mask="random")
    text = "one two three four five six"
    torch.manual_seed(0)
    wanted = peer([text])
    torch.manual_seed(0)
    assert torch.equal(WordTokenizer(peer)([text]), wanted)
