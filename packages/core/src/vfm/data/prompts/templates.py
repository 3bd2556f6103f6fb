"""Prompts for classes, from templates with a placeholder or from sentences for each class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vfm.base import UserError, did_you_mean
from vfm.storage import files


def check_templates(templates: Sequence[str], where: str = "") -> list[str]:
    """Check that each template has `{}` for the class name, after replacing CLIP_benchmark's `{c}` by `{}`.

    Args:
        templates: Templates as the user wrote them.
        where: File with the templates, for the error.

    Raises:
        UserError: If a template has no `{}`.
    """
    checked = []
    for template in templates:
        spelled = template.replace("{c}", "{}")
        if "{}" not in spelled:
            raise UserError(f"{where and where + ': '}template {spelled!r} has no {{}} for the class name")
        checked.append(spelled)
    return checked


def read_sentences(path: str) -> dict[str, list[str]]:
    """Read the sentences of each class from a JSON file of the form {class: [sentences]}.

    Raises:
        UserError: If the file is missing or damaged, or a class has no sentence or occurs twice.

    Source: Pratt et al. 2023, What does a platypus look like? (CuPL, arXiv:2209.03320), whose files have this form.
    """
    text = files.read_text(path)
    try:
        record = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(record, dict) or not record:
        raise UserError(f"{path}: expected {{class: [sentences]}}, got {record!s:.60}")
    for name, sentences in record.items():
        listed = sentences if isinstance(sentences, list) else []
        if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
            raise UserError(f"{path}: class {name!r}: expected a list of sentences, got {sentences!s:.60}")
    return record


def sentences_of(path: str, class_names: Sequence[str], *, others: bool = False) -> list[list[str]]:
    """Read the sentences of each class in the order of the names.

    Args:
        path: File for `read_sentences`.
        class_names: The classes.
        others: Whether the file may have more classes.

    Raises:
        UserError: If a class has no sentences, or sentences belong to no class. The error names the first.
    """
    sentences = read_sentences(path)
    known = set(class_names)
    missing = [name for name in class_names if name not in sentences]
    if missing:
        raise UserError(f"{path}: no sentences for {_listed(missing)}{did_you_mean(missing[0], sentences)}")
    unknown = [name for name in sentences if name not in known]
    if unknown and not others:
        raise UserError(f"{path}: the dataset has no class {_listed(unknown)}{did_you_mean(unknown[0], known)}")
    return [sentences[name] for name in class_names]


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object without repeated keys, of which json itself would keep the last."""
    counts = Counter(name for name, _ in pairs)
    for name, count in counts.most_common(1):
        if count > 1:
            raise ValueError(f"{name!r} is there twice")
    return dict(pairs)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 1
    if not more:
        return f"{names[0]!r}"
    return f"{names[0]!r} and {more} other{'s' * (more > 1)}"
