"""Conversations have the tokens of their whole text, as a template of transformers writes it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

transformers = pytest.importorskip("transformers")

from vfm_diva.mllm.prompts import QuestionTokenizer  # noqa: E402

WORDS = ["USER:", "THEN", "SAY:", "red", "blue", "which", "?"]
SPECIAL = ("<unk>", "<s>", "</s>", "<image>")


def llama_tokenizer(scheme: str) -> object:
    """Build a tokenizer with Llama's start token, and a space before each text (always) or the first one (first)."""
    pieces = [*SPECIAL, "\u2581", *WORDS, *(f"\u2581{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(len(piece) < 2)) for piece in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(list(SPECIAL))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("later_prompt", ["THEN {question} SAY:", "{question}"])
def test_later_turns_have_the_tokens_of_the_whole_text(scheme: str, later_prompt: str) -> None:
    tokenizer = llama_tokenizer(scheme)
    questions = QuestionTokenizer(tokenizer, "USER: <image>{question} SAY:", later_prompt, 1, 100)
    for question, answer in (("which ?", "red"), ("which ?", "SAY: blue"), ("", "red")):
        sequence = questions.sequence(("which ?", "blue", question, answer))
        later = later_prompt.replace("{question}", question)
        text = f"USER: <image>which ? SAY: blue</s>{later} {answer}</s>"
        assert list(sequence.ids) == tokenizer(text).input_ids  # type: ignore[operator]
        length = len(tokenizer(f" {answer}", add_special_tokens=False).input_ids)  # type: ignore[operator]
        assert sum(sequence.is_answer[sequence.last_turn :]) <= length + 1
