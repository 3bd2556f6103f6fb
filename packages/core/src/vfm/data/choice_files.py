"""Readers of caption-choice benchmarks as their authors lay them out: MMVP-VLM's folder, items in JSON lines, others.

Source: Tong et al. 2024, Eyes Wide Shut? (arXiv:2401.06209); the layout is that of its `scripts/evaluate_vlm.py`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfm.config import UserError
from vfm.data import files
from vfm.data.choice_formats import OnBad, is_winoground, read_image, read_sugarcrepe, read_winoground
from vfm.data.choices import Choice
from vfm.data.sample import BadSample

QUESTIONS_FILE = "Questions.csv"
MMVP_PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)
MMVP_PAIRS_PER_PATTERN = 15
IMAGE_ROOTS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images")  # the authors', DIVA's, and some READMEs'


def read_choices(path: str, on_bad: OnBad, image_root: str | None = None) -> Iterator[Choice]:
    """Items of a benchmark; those with a bad image are told to `on_bad` and left out.

    Args:
        path: MMVP-VLM's folder; SugarCrepe's JSON file, or a folder of them; Winoground's `examples.jsonl` or its
            parquet; or items of our own in JSON lines.
        on_bad: takes a reason and a place.
        image_root: the folder of SugarCrepe's or Winoground's pictures.

    Raises:
        UserError: the path is none of these.
    """
    if path.endswith(".jsonl"):
        return read_winoground(Path(path), image_root, on_bad) if is_winoground(path) else _read_jsonl(path, on_bad)
    if path.endswith(".parquet"):
        return read_winoground(Path(path), image_root, on_bad)
    if path.endswith(".json"):
        return read_sugarcrepe([Path(path)], image_root, on_bad)
    if subsets := [] if (Path(path) / QUESTIONS_FILE).is_file() else sorted(Path(path).glob("*.json")):
        return read_sugarcrepe(subsets, image_root, on_bad)
    return _read_mmvp(Path(path), on_bad)


def _read_mmvp(folder: Path, on_bad: OnBad) -> Iterator[Choice]:
    """Pairs of `Questions.csv`, whose rows are taken two at a time; an odd question id belongs to the first image."""
    questions, root = _questions(folder / QUESTIONS_FILE), _image_root(folder)
    patterns = _patterns(questions)
    for pair, pattern in enumerate(patterns):
        rows = questions[2 * pair : 2 * pair + 2]
        try:
            images = [read_image(str(root), f"{kind}/{number}.jpg") for number, kind, _ in rows]
        except BadSample as bad:
            on_bad(bad.reason, bad.where)
            continue
        truth = [0 if int(number) % 2 else 1 for number, _, _ in rows]
        yield Choice("-".join(number for number, _, _ in rows), pattern, images, [row[2] for row in rows], truth)


def _questions(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the folder of MMVP-VLM holds {QUESTIONS_FILE} and a folder of images")
    lines = list(csv.reader(io.StringIO(files.read_text(str(path)))))
    rows = [[cell.strip() for cell in row] for row in lines[1:] if row]
    for line, row in enumerate(rows, start=2):
        if len(row) != 3 or not row[0].isdigit():
            raise UserError(f"{path}: line {line}: three columns are wanted (question id, type, statement), not {row}")
    if len(rows) % 2 or not rows:
        raise UserError(f"{path}: {len(rows)} questions; they come in pairs")
    return rows


def mmvp_patterns(num_pairs: int) -> list[str]:
    """Pattern of each pair of the official set, which goes by *position* in the file, not by the file's Type column.

    Raises:
        ValueError: not the official 135 pairs, where position would say nothing.
    """
    if num_pairs != len(MMVP_PATTERNS) * MMVP_PAIRS_PER_PATTERN:
        raise ValueError(f"patterns go by position only in the official set of 135 pairs, this one has {num_pairs}")
    return [MMVP_PATTERNS[pair // MMVP_PAIRS_PER_PATTERN] for pair in range(num_pairs)]


def _patterns(questions: list[list[str]]) -> list[str]:
    """The pattern of each pair: by place in the official set, as its authors count, else the file's own."""
    pairs = len(questions) // 2
    if pairs == len(MMVP_PATTERNS) * MMVP_PAIRS_PER_PATTERN:
        return mmvp_patterns(pairs)
    return [kind for _, kind, _ in questions[::2]]


def _image_root(folder: Path) -> Path:
    root = next((folder / name for name in IMAGE_ROOTS if (folder / name).is_dir()), None)
    if root is None:
        raise UserError(f"{folder}: no folder of images here; one of {', '.join(map(repr, IMAGE_ROOTS))} is wanted")
    return root


def _read_jsonl(path: str, on_bad: OnBad) -> Iterator[Choice]:
    """Lines of `{"images": [paths], "statements": [...], "truth": [...], "pattern": ..., "key": ...}`."""
    for number, line in enumerate(files.read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            item: dict[str, Any] = json.loads(line)
            images = [read_image(str(Path(path).parent), name) for name in item["images"]]
            yield Choice(
                str(item.get("key", number)), item.get("pattern", ""), images, item["statements"], item["truth"]
            )
        except BadSample as bad:
            on_bad(bad.reason, bad.where)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: images, statements and truth are wanted: {error}") from None
