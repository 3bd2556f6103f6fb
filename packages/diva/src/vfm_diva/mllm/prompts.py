"""Token sequences of a prompt, its image and an answer."""

# T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vfm.plugin import UserError

IMAGE_TOKEN = "<image>"
REMEMBERED = 65_536  # sequences


@dataclass(frozen=True)
class Sequences:
    """Sequences of several prompts with answers, padded on the right.

    ids: tokens, int64 (B, T). A causal model never sees the padding, so no attention mask is needed.
    answers: True at the tokens of the answers and the end after them, bool (B, T).
    """

    ids: Tensor
    answers: Tensor


class QuestionTokenizer:
    """Tokenizer of questions and answers.

    Args:
        tokenizer: tokenizer of transformers, with the token `<image>` and an end token.
        prompt: text with `<image>` and `{question}`.
        num_image_tokens: number of tokens that an image takes.
        max_length: largest number of tokens of a sequence.
    """

    def __init__(self, tokenizer: Any, prompt: str, num_image_tokens: int, max_length: int) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        self.num_image_tokens, self.max_length = num_image_tokens, max_length
        self.image_token: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.end_token: int = tokenizer.eos_token_id
        self.pad_token: int = self.end_token if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.sequence = lru_cache(REMEMBERED)(self._sequence)

    def sequences(self, texts: Sequence[tuple[str, str]]) -> Sequences:
        """Build the sequences of pairs of a question and an answer."""
        tokenized = [self.sequence(question, answer) for question, answer in texts]
        longest = max(len(ids) for ids, _ in tokenized)
        ids = torch.full((len(tokenized), longest), self.pad_token)
        answers = torch.zeros_like(ids, dtype=torch.bool)
        for row, (tokens, start) in enumerate(tokenized):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            answers[row, start : len(tokens)] = True
        return Sequences(ids, answers)

    def _sequence(self, question: str, answer: str) -> tuple[tuple[int, ...], int]:
        """Tokenize prompt, answer and end, and find the index at which the answer begins.

        The text is cut into tokens as a whole, since a word's tokens may depend on the space before it.

        Raises:
            UserError: If a text contains a token for an image, the tokenizer lacks a word of the answer, or the
                sequence is too long.
        """
        for text in (question, answer):
            if IMAGE_TOKEN in text:
                raise UserError(f"expected no {IMAGE_TOKEN} in a question or an answer, got {text!r}; `prompt` has it")
        before = self.prompt.replace("{question}", question)
        prompt, whole = self._ids(before), self._ids(f"{before} {answer}")
        start = 0
        # The answer begins at the first token that differs from the prompt alone.
        while start < min(len(prompt), len(whole)) and prompt[start] == whole[start]:
            start += 1
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in whole[start:]:
            raise UserError(f"{answer!r}: the model's vocabulary lacks a word of this answer")
        ids = [*whole, self.end_token]
        image_index = ids.index(self.image_token)
        ids[image_index : image_index + 1] = [self.image_token] * self.num_image_tokens
        if len(ids) > self.max_length:
            raise UserError(f"{question!r}: expected at most {self.max_length} tokens, got {len(ids)} with the image")
        return tuple(ids), start + self.num_image_tokens - 1

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text).input_ids
        return ids[:-1] if ids[-1] == self.end_token else ids
