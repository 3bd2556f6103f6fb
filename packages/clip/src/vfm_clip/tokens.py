"""Whether a tokenizer belongs to its text tower, told by a few texts before anything is trained."""

# L context length

from __future__ import annotations

from typing import Any

import torch

from vfm.config import UserError
from vfm.models.clip import ClipModel

PROBES = [
    "a photo of a dog",
    "Ωμέγα, фото собаки, 犬の写真, صورة كلب, 🐕",
    "naïve façade №5: 1,234,567 × 0.5 µm = ½?",
]


def check_tokenizer(clip: ClipModel) -> None:
    """Refuses a tokenizer whose tokens or lengths a text tower does not know; the model may be a `blueprint`.

    Raises:
        UserError: it is another model's, or its context is longer than the model's.
    """
    tower: Any = getattr(clip.module, "text", clip.module)
    tokens = clip.tokenize(PROBES)
    table = getattr(tower, "token_embedding", None) or tower.transformer.get_input_embeddings()
    if int(tokens.max()) >= len(table.weight):
        raise UserError(
            f"{clip.name}: its tokenizer makes token {int(tokens.max())}, its text tower knows {len(table.weight)}:"
            " the tokenizer is another model's (text_cfg: hf_tokenizer_name, vocab_size)"
        )
    positions = getattr(tower, "positional_embedding", None)
    if positions is not None and tokens.shape[1] > len(positions):
        raise UserError(
            f"{clip.name}: its tokenizer makes {tokens.shape[1]} tokens of a text, its text tower has"
            f" {len(positions)} positions (text_cfg: context_length, tokenizer_kwargs)"
        )


def check_teacher(clip: ClipModel, teacher: ClipModel) -> None:
    """Refuses a teacher that does not see what its student sees: the same pixels, the same tokens.

    Raises:
        UserError: one line with both.
    """
    sizes = clip.preprocess.image_size, teacher.preprocess.image_size
    what = f"{teacher.name} cannot teach {clip.name}"
    if sizes[0] != sizes[1]:
        raise UserError(f"{what}: it sees {sizes[1]} pixels a side, the student {sizes[0]}")
    if clip.context_length != teacher.context_length:
        raise UserError(f"{what}: it reads {teacher.context_length} tokens, the student {clip.context_length}")
    if not torch.equal(clip.tokenize(PROBES), teacher.tokenize(PROBES)):
        raise UserError(f"{what}: it has another tokenizer")
