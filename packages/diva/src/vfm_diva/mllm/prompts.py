"""Build token sequences of a conversation from prompts, an image and answers."""

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

    Attributes:
        ids: Tokens, int64 (B, T). A causal model never sees the padding, so no attention mask is needed.
        answers: True at the tokens of the answers and the ends after them, bool (B, T).
    """

    ids: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens of a conversation.

    Attributes:
        ids: Tokens.
        is_answer: Mask of the answers and the ends after them.
        last_turn: Index at which the last turn begins.
    """

    ids: tuple[int, ...]
    is_answer: tuple[bool, ...]
    last_turn: int


class QuestionTokenizer:
    """Tokenizer of questions and answers.

    Args:
        tokenizer: Tokenizer of transformers, with the token `<image>` and an end token.
        prompt: Text around the first question, with `<image>` and `{question}`.
        later_prompt: Text around later questions, with `{question}`.
        num_image_tokens: Number of tokens that an image takes.
        max_length: Largest number of tokens of a sequence.
    """

    def __init__(self, tokenizer: Any, prompt: str, later_prompt: str, num_image_tokens: int, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.later_prompt = later_prompt
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        self.image_token: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.end_token: int = tokenizer.eos_token_id
        self.pad_token: int = self.end_token if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.sequence = lru_cache(REMEMBERED)(self._sequence)

    def sequences(self, conversations: Sequence[Sequence[str]], *, last_only: bool = False) -> Sequences:
        """Build the sequences of conversations.

        Args:
            conversations: Questions and answers in alternation.
            last_only: Mark only the last answers.
        """
        tokenized = [self.sequence(tuple(turns)) for turns in conversations]
        longest = max(len(tokens.ids) for tokens in tokenized)
        ids = torch.full((len(tokenized), longest), self.pad_token)
        answers = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(tokenized):
            ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
            answers[row, : len(tokens.ids)] = torch.tensor(tokens.is_answer)
            if last_only:
                answers[row, : tokens.last_turn] = False
        return Sequences(ids, answers)

    def _sequence(self, turns: tuple[str, ...]) -> Tokens:
        """Tokenize the prompts and answers of a conversation, with the end token after each answer.

        Raises:
            UserError: If a text contains a token for an image, the tokenizer lacks a word of an answer, or the sequence
                is too long.
        """
        for text in turns:
            if IMAGE_TOKEN in text:
                raise UserError(f"expected no {IMAGE_TOKEN} in a question or an answer, got {text!r}; `prompt` has it")
        ids: list[int] = []
        is_answer: list[bool] = []
        prompt = self.prompt
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            turn, start = self._turn(prompt.replace("{question}", question), answer, is_first=not ids)
            ids += turn
            is_answer += [False] * start + [True] * (len(turn) - start)
            prompt = self.later_prompt
        image_index = ids.index(self.image_token)
        ids[image_index : image_index + 1] = [self.image_token] * self.num_image_tokens
        is_answer[image_index : image_index + 1] = [False] * self.num_image_tokens
        if len(ids) > self.max_length:
            raise UserError(f"{turns[0]!r}: expected at most {self.max_length} tokens, got {len(ids)} with the image")
        return Tokens(tuple(ids), tuple(is_answer), len(ids) - len(turn))

    def _turn(self, before: str, answer: str, *, is_first: bool) -> tuple[list[int], int]:
        """Tokenize a prompt, its answer and the end, and find the index at which the answer begins.

        The text is cut into tokens as a whole, since a word's tokens may depend on the space before it.
        """
        prompt = self._ids(before, is_first)
        whole = self._ids(f"{before} {answer}", is_first)
        start = 0
        # The answer begins at the first token that differs from the prompt alone.
        while start < min(len(prompt), len(whole)) and prompt[start] == whole[start]:
            start += 1
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in whole[start:]:
            raise UserError(f"{answer!r}: the model's vocabulary lacks a word of this answer")
        return [*whole, self.end_token], start

    def _ids(self, text: str, is_first: bool) -> list[int]:
        """Tokenize the first text of a sequence, with the tokenizer's start token, or a text after an end token.

        It is cut after that end token, since some tokenizers of Llama put a space before the first text alone.
        """
        if is_first:
            ids: list[int] = self.tokenizer(text).input_ids
        else:
            ids = self.tokenizer(self.tokenizer.eos_token + text, add_special_tokens=False).input_ids[1:]
        if ids[-1:] == [self.end_token]:
            return ids[:-1]
        return ids
