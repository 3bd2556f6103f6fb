"""Language models of `mllm.train`, each with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from vfm.models import without_custom_code
from vfm.plugin import UserError
from vfm_diva.mllm.prompts import IMAGE_TOKEN
from vfm_diva.mllm.stages import LanguageModel, PretrainedLanguageModel, SmallLlama

PAD = "<pad>"
UNKNOWN = "<unk>"
END = "</s>"


def small_llama(config: SmallLlama, texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, Any]:
    """Build a small Llama with random weights, and its tokenizer.

    The weights depend only on the seed, the sizes and the number of words, so that towers can be compared.

    Args:
        config: Sizes of the model.
        texts: Texts whose words the tokenizer knows.
        seed: Seed of the weights.
    """
    tokenizer = word_tokenizer(texts)
    sizes = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    # The seed alone decides the weights, and the run's random state does not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(sizes), tokenizer


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose tokens are the words and punctuation marks of the texts."""
    cut = pre_tokenizers.Whitespace()
    words: set[str] = set()
    for text in texts:
        words.update(word for word, _ in cut.pre_tokenize_str(text.replace(IMAGE_TOKEN, " ")))
    tokens = dict.fromkeys((PAD, UNKNOWN, END, IMAGE_TOKEN, *sorted(words)))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = cut
    tokenizer.add_special_tokens([PAD, UNKNOWN, END, IMAGE_TOKEN])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END)


def pretrained(config: PretrainedLanguageModel, texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, Any]:
    """Load a pretrained language model and its tokenizer, with a token for images.

    Args:
        config: Folder of the model, or its name on the hub.
        texts: Not used, because the model has its tokenizer.
        seed: Seed of the image token's embedding.

    Raises:
        UserError: If there is no such model, or its tokenizer has no end token.
    """
    source, _, revision = config.source.partition("@")
    with _loading(config.source):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or None)
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision or None, dtype=torch.float32)
    _add_image_token(tokenizer, config.source)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


def planned_language_model(part: LanguageModel, texts: Iterable[str]) -> tuple[PreTrainedModel, Any] | None:
    """Build a language model for an estimate, on torch's default device.

    Args:
        part: The configured model.
        texts: Texts whose words a new tokenizer knows.

    Returns:
        The model and its tokenizer, or None for a model on the hub.

    Raises:
        UserError: If a folder has no such model, or its tokenizer has no end token.
    """
    if not isinstance(part, PretrainedLanguageModel):
        return part.build(texts, 0)  # type: ignore[no-any-return]
    if not Path(part.source).is_dir():
        return None
    with _loading(part.source):
        tokenizer = AutoTokenizer.from_pretrained(part.source)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(part.source), dtype=torch.float32)
    _add_image_token(tokenizer, part.source)
    return model, tokenizer


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Reduce transformers' errors about a model that it cannot load to a single line."""
    try:
        with without_custom_code(source):
            yield
    except UserError:
        raise
    except Exception as error:  # for damaged files, the libraries raise errors of many types, and plain exceptions
        raise UserError(f"{source}: no language model: {' '.join(str(error).split())[:300]}") from None


def _add_image_token(tokenizer: Any, source: str) -> None:
    if tokenizer.eos_token_id is None:
        raise UserError(f"{source}: its tokenizer has no end token")
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
