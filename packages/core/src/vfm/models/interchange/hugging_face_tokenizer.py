"""Tokenizer files of Hugging Face's layout, for `CLIPProcessor`, `SiglipProcessor` and pipelines.

CLIP's own tokenizer is written from open_clip's vocabulary, so `transformers` is not needed for it. transformers cleans
texts less than open_clip: it repairs no broken Unicode and leaves HTML entities as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_clip import SimpleTokenizer

from vfm.models.clip.clip import ClipModel
from vfm.models.clip.text import WordTokenizer
from vfm.models.transformers_folders.files import TOKENIZER_CONFIG_FILE
from vfm.storage.store_files import read_record

_START, _END, _PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


def other_tokenizer(folder: Path) -> str | None:
    """Find the name for a folder's tokenizer in open_clip's configuration.

    It is CLIP's own if it has the same vocabulary and merges. open_clip's faster tokenizer then reads the texts.

    Returns:
        None for CLIP's own tokenizer, or without a tokenizer.
    """
    if not (folder / TOKENIZER_CONFIG_FILE).is_file():
        return None
    whole = folder / "tokenizer.json"
    vocabulary_file = folder / "vocab.json"
    merges_file = folder / "merges.txt"
    if whole.is_file():
        model = read_record(whole).get("model") or {}
        vocabulary, merges = model.get("vocab"), model.get("merges") or []
    elif vocabulary_file.is_file() and merges_file.is_file():
        vocabulary = read_record(vocabulary_file)
        merges = merges_file.read_text(encoding="utf-8").splitlines()
    else:
        return folder.name
    clip = SimpleTokenizer()
    pairs = []
    for merge in merges:
        pair = tuple(merge.split() if isinstance(merge, str) else merge)
        if len(pair) == 2 and pair[0] != "#version:":
            pairs.append(pair)
    is_clip = pairs == list(clip.bpe_ranks) and _words(vocabulary) == _words(clip.encoder)
    return None if is_clip else folder.name


def _words(vocabulary: Any) -> dict[str, int]:
    """Select the entries of a vocabulary that are not special tokens, whose names differ between libraries."""
    words = vocabulary.items() if isinstance(vocabulary, Mapping) else ()
    special = (_START, _END, _PAD, "<start_of_text>", "<end_of_text>")
    return {word: number for word, number in words if word not in special}


def tokenizer_mismatches(text: Mapping[str, Any]) -> list[str]:
    """Explain why transformers has no equal tokenizer for a `text_cfg` of open_clip; empty if it has one."""
    options = dict(text.get("tokenizer_kwargs") or {})
    options.pop("context_length", None)
    if options and not text.get("hf_tokenizer_name"):
        return [f"text_cfg.tokenizer_kwargs is {options}"]
    return []


def save_tokenizer(model: ClipModel, directory: Path, *, reads_padding: bool) -> None:
    """Save a model's tokenizer for transformers.

    Args:
        model: Model with CLIP's own tokenizer or a Hugging Face tokenizer.
        directory: Folder of the model's files.
        reads_padding: The text tower has no causal mask, as in SigLIP, so the padding must be the model's own, and it
            takes no attention mask.

    Raises:
        UserError: If a Hugging Face tokenizer cannot be loaded.
    """
    tokenizer: Any = model.tokenizer
    changes: dict[str, Any] = {"model_max_length": model.context_length}
    if reads_padding:
        changes |= {"model_input_names": ["input_ids"], "padding_side": "right"}
    file = directory / TOKENIZER_CONFIG_FILE
    if isinstance(tokenizer, WordTokenizer):
        changes |= _save_clip_tokenizer(tokenizer.tokenizer, directory, pads_with_zeros=reads_padding)
    else:
        tokenizer.save_pretrained(directory)
        changes = {**read_record(file), **changes}
    file.write_text(json.dumps(changes, indent=2) + "\n", encoding="utf-8")


def _save_clip_tokenizer(tokenizer: Any, directory: Path, *, pads_with_zeros: bool) -> dict[str, Any]:
    """Write vocabulary and merges of an `open_clip.SimpleTokenizer`, and return its entries of the configuration."""
    vocabulary = dict(tokenizer.encoder)
    for name, number in ((_START, tokenizer.sot_token_id), (_END, tokenizer.eot_token_id)):
        del vocabulary[tokenizer.decoder[number]]
        vocabulary[name] = number
    if pads_with_zeros:  # 0 is also the token of "!" within a word, and a padding token of that name would end words
        vocabulary[_PAD] = 0
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "\n".join(map(" ".join, tokenizer.bpe_ranks))
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _PAD if pads_with_zeros else _END,
    }
