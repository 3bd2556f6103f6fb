"""Checks of a tokenizer against its text tower, and of a teacher against its student, with a few texts."""

from __future__ import annotations

from typing import Any

import torch

from vfm.models import ClipModel
from vfm.plugin import UserError

PROBES = [
    "a photo of a dog",
    "Ωμέγα, фото собаки, 犬の写真, صورة كلب, 🐕",
    "naïve façade №5: 1,234,567 × 0.5 µm = ½?",
]


def check_tokenizer(clip: ClipModel) -> None:
    """Check that the text tower has an embedding for every token and a position for each; a `blueprint` will do.

    Raises:
        UserError: the tokenizer is another model's, or its context is longer than the model's.
    """
    tower: Any = getattr(clip.module, "text", clip.module)
    tokens = clip.tokenize(PROBES)
    table = getattr(tower, "token_embedding", None) or tower.transformer.get_input_embeddings()
    if int(tokens.max()) >= len(table.weight):
        raise UserError(
            f"{clip.name}: the tokenizer returns token {int(tokens.max())}, the text tower has {len(table.weight)}"
            " embeddings: the tokenizer is another model's (text_cfg: hf_tokenizer_name, vocab_size)"
        )
    positions = getattr(tower, "positional_embedding", None)
    if positions is not None and tokens.shape[1] > len(positions):
        raise UserError(
            f"{clip.name}: the tokenizer returns {tokens.shape[1]} tokens per text, the text tower has"
            f" {len(positions)} positions (text_cfg: context_length, tokenizer_kwargs)"
        )


def check_teacher(clip: ClipModel, teacher: ClipModel) -> None:
    """Check that a teacher's inputs are its student's: the same image size and the same tokens.

    Raises:
        UserError: the first difference, with both values.
    """
    sizes = clip.preprocess.image_size, teacher.preprocess.image_size
    what = f"{teacher.name} cannot teach {clip.name}"
    if sizes[0] != sizes[1]:
        raise UserError(f"{what}: its image size is {sizes[1]}, the student's is {sizes[0]}")
    if clip.context_length != teacher.context_length:
        raise UserError(
            f"{what}: its context length is {teacher.context_length}, the student's is {clip.context_length}"
        )
    if not torch.equal(clip.tokenize(PROBES), teacher.tokenize(PROBES)):
        raise UserError(f"{what}: it has another tokenizer")
