"""Captions without their padding give the same features, gradients and hashes, whatever the micro-batches."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings, strategies as st

import vfm_clip.task
from clip_world import TEXT, VIT, Random, plan, tiny_task, train
from vfm.data import Batch
from vfm.models import encode_text, used_length
from vfm_clip.data import ClipInputs
from vfm_clip.feature_metrics import token_hash

LONG = {**VIT, "text_cfg": {**TEXT, "context_length": 24}}
TEXTS = ["a red circle", "a blue star beside a green square", "x"]


def inputs(task, texts=TEXTS) -> ClipInputs:
    size = task.model.preprocess.image_size
    return ClipInputs(torch.zeros(len(texts), 3, size, size, dtype=torch.uint8), task.model.tokenize(texts))


def test_features_and_gradients_are_those_of_padded_captions():
    task = tiny_task(LONG)
    padded = inputs(task)
    trimmed = task.prepare(padded)
    assert used_length(task.module, padded.tokens) <= trimmed.tokens.shape[1] < padded.tokens.shape[1]
    assert trimmed.tokens.shape[1] % 8 == 0
    found = []
    for tokens in (padded.tokens, trimmed.tokens):
        task.zero_grad()
        features = encode_text(task.module, tokens, normalize=True)
        features.square().mul(torch.arange(features.shape[1])).sum().backward()
        text = {name: param.grad.clone() for name, param in task.module.named_parameters() if param.grad is not None}
        found.append((features.detach(), text))
    (features, gradients), (shorter, same) = found
    torch.testing.assert_close(shorter, features, rtol=0, atol=5e-7)
    assert gradients.keys() == same.keys()
    assert "positional_embedding" in "".join(gradients)
    for name, grad in gradients.items():
        torch.testing.assert_close(same[name], grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(
    rows=st.lists(st.lists(st.integers(0, 49407), min_size=1, max_size=40), min_size=1, max_size=4),
    pad=st.integers(0, 40),
)
def test_zeros_at_the_end_do_not_change_a_hash(rows, pad):
    length = max(map(len, rows))
    short = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    long = torch.cat([short, torch.zeros(len(rows), pad, dtype=torch.long)], dim=1)
    assert torch.equal(token_hash(short), token_hash(long))


def test_captions_that_fill_the_context_or_end_in_other_padding_are_left_as_they_are():
    task = tiny_task(LONG)
    full = inputs(task, ["word " * 100])
    assert task.prepare(full) is full
    other = inputs(task)
    other.tokens[0, -1] = 7
    assert task.prepare(other) is other


class Padded(Random):
    """Captions of eight tokens in a context of 24."""

    def batch(self, step: int) -> Batch[ClipInputs]:
        batch = super().batch(step)
        tokens = torch.nn.functional.pad(batch.inputs.tokens, (0, 16))
        return replace(batch, inputs=replace(batch.inputs, tokens=tokens))


def test_a_training_with_trimmed_captions_ends_with_the_weights_of_one_with_padding(tmp_path, monkeypatch):
    lengths: list[int] = []
    encode = vfm_clip.task.encode_text
    monkeypatch.setattr(vfm_clip.task, "encode_text", lambda module, tokens, **options: (
        lengths.append(tokens.shape[1]), encode(module, tokens, **options))[1])  # fmt: skip
    config, tasks = plan(micro_batch_size=5, optimizer={"type": "sgd"}), [tiny_task(LONG), tiny_task(LONG)]
    train(tmp_path / "trimmed", config, tasks[0], Padded(LONG, 12))
    assert set(lengths) == {8}
    monkeypatch.setattr(type(tasks[1]), "prepare", lambda self, inputs: inputs)
    train(tmp_path / "padded", config, tasks[1], Padded(LONG, 12))
    assert set(lengths) == {8, 24}
    for a, b in zip(tasks[0].parameters(), tasks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
