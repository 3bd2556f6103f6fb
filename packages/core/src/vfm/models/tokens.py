"""Captions as tokens: the tokenizer of a text tower, and CLIP's own with the tokens of each word worked out once."""

# N texts, L context length

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from vfm.config import UserError
from vfm.models.sources import first_line

MAX_WORDS = 200_000  # remembered at once: a web's words would fill the memory of every worker


class WordTokenizer:
    """open_clip's `SimpleTokenizer` with the tokens of each word remembered; it makes the same in a fifth of the time.

    Cleaning a text takes longer than all else. In a plain one words can be told apart first, and each cleaned once.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Takes its words, its cleaning and its context length from an `open_clip.SimpleTokenizer`."""
        self.tokenizer, self.words = tokenizer, dict[str, list[int]]()
        self.special = dict(tokenizer.cache)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Token ids, int64 (N, L); a longer text is cut, its end token kept, a shorter one filled up with zeros."""
        texts = [texts] if isinstance(texts, str) else texts
        if self.tokenizer.reduction_fn:  # CLIPA's ways to shorten a text draw from torch's generator
            reduced: Tensor = self.tokenizer(texts, context_length)
            return reduced
        length = context_length or self.tokenizer.context_length
        tokens = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self.tokenizer.sot_token_id]
            for word in text.split() if _is_plain(text) else self._pieces(text):
                ids += self.words.get(word) or self._learn(word)
            ids = [*ids[: length - 1], self.tokenizer.eot_token_id]
            row[: len(ids)] = ids
        return torch.from_numpy(tokens)

    def _learn(self, word: str) -> list[int]:
        if max(len(self.words), len(self.tokenizer.cache)) >= MAX_WORDS:
            self.words.clear()
            self.tokenizer.cache = dict(self.special)  # it remembers them too
        pieces = self._pieces(word) if _is_plain(word) else [word]  # a plain piece is its own only piece
        spelled = ["".join(self.tokenizer.byte_encoder[byte] for byte in piece.encode()) for piece in pieces]
        merged = [part for piece in spelled for part in self.tokenizer.bpe(piece).split(" ")]
        found = self.words[word] = [self.tokenizer.encoder[part] for part in merged]
        return found

    def _pieces(self, text: str) -> list[str]:
        found: list[str] = self.tokenizer.pat.findall(self.tokenizer.clean_fn(text))
        return found


def _is_plain(text: str) -> bool:
    """Whether cleaning does nothing to a text but with its case, punctuation and spaces: nothing across two words."""
    return text.isascii() and text.isprintable() and "&" not in text


def build_tokenizer(
    text: Mapping[str, Any], context_length: int, model: str, folder: Path | None
) -> Callable[..., Tensor]:
    """The tokenizer of a text tower: CLIP's own, or one of Hugging Face's.

    Args:
        text: open_clip's `text_cfg`.
        context_length: tokens of a text.
        model: the model's name, for messages.
        folder: where the model was loaded from; a Hugging Face tokenizer saved there comes before that of the hub.

    Raises:
        UserError: it is not there, or transformers is not installed.
    """
    options = {"context_length": context_length, **(text.get("tokenizer_kwargs") or {})}
    if not (name := text.get("hf_tokenizer_name")):
        return WordTokenizer(open_clip.SimpleTokenizer(**options))
    source = folder if folder and (folder / "tokenizer_config.json").is_file() else name
    try:
        made: Callable[..., Tensor] = open_clip.tokenizer.HFTokenizer(
            str(source), tokenizer_mode=text.get("tokenizer_mode"), **options
        )
    except ImportError as error:
        raise UserError(f"{model}: its tokenizer {name!r} needs transformers: {first_line(error)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: its tokenizer {name!r} is not there: {first_line(error)}") from None
    return made
