"""Readers of MMVP-VLM and SugarCrepe as their authors publish them.

MMVP-VLM: `Questions.csv` and a folder of images, laid out as `scripts/evaluate_vlm.py` of the authors expects.
SugarCrepe: a JSON file per subset, {number: {filename, caption, negative_caption}}, with the images of COCO val2017.

Source: Tong et al. 2024, Eyes Wide Shut? (arXiv:2401.06209); Hsieh et al. 2023, SugarCrepe (arXiv:2306.14610).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.data.choices.choices import Choice
from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import BadSample
from vfm.data.samples.texts import OnBad
from vfm.data.tables.csv_rows import csv_rows
from vfm.storage import files

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
MMVP_PAIRS_PER_PATTERN = 15  # the files list the pairs pattern by pattern
IMAGE_FOLDERS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images")  # the authors', DIVA's, and some READMEs'
SUGARCREPE = ("filename", "caption", "negative_caption")


def read_mmvp(folder: Path, on_bad: OnBad) -> Iterator[Choice]:
    """Yield the pairs of `Questions.csv`, two rows each. Odd question ids belong to the first image."""
    file = folder / QUESTIONS_FILE
    questions = _questions(file)
    root = _image_folder(folder)
    patterns = _patterns(questions)
    for pair, pattern in enumerate(patterns):
        rows = questions[2 * pair : 2 * pair + 2]
        try:
            if not all(map(_is_question, rows)):
                raise BadSample("unreadable_row", f"{file}: pair {pair + 1}")
            images = [read_choice_image(str(root), f"{kind}/{number}.jpg") for number, kind, _ in rows]
        except BadSample as bad:
            on_bad(bad.reason, bad.where)
            continue
        numbers, _, statements = zip(*rows, strict=True)
        truth = [1 - int(number) % 2 for number in numbers]
        yield Choice("-".join(numbers), pattern, images, list(statements), truth)


def _questions(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected MMVP-VLM's folder, {QUESTIONS_FILE} and a folder of images")
    rows = []
    for _, _, row in islice(csv_rows(str(path)), 1, None):  # the first line has the names of the columns
        if row:
            rows.append(list(map(str.strip, row)))
    if len(rows) % 2 or not rows:
        raise UserError(f"{path}: expected pairs of questions, got {len(rows)} questions")
    return rows


def _is_question(row: list[str]) -> bool:
    """Check that a row has question id, type and statement."""
    return len(row) == 3 and row[0].isascii() and row[0].isdigit() and bool(row[2])


def mmvp_patterns(num_pairs: int) -> list[str]:
    """List the pattern of each pair in the official set.

    The pattern depends on the *position* in the file. The file's Type column is not the pattern.

    Raises:
        ValueError: If `num_pairs` is not the official number of pairs.
    """
    expected = len(MMVP_PATTERNS) * MMVP_PAIRS_PER_PATTERN
    if num_pairs != expected:
        raise ValueError(f"patterns by position: expected the official set of {expected} pairs, got {num_pairs}")
    return [MMVP_PATTERNS[pair // MMVP_PAIRS_PER_PATTERN] for pair in range(num_pairs)]


def _patterns(questions: list[list[str]]) -> list[str]:
    """List the pattern of each pair.

    In the official set it follows from the position, otherwise from the file's Type column.
    """
    pairs = len(questions) // 2
    if pairs == len(MMVP_PATTERNS) * MMVP_PAIRS_PER_PATTERN:
        return mmvp_patterns(pairs)
    return [row[1] if len(row) > 1 else "" for row in questions[::2]]


def _image_folder(folder: Path) -> Path:
    for name in IMAGE_FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise UserError(f"{folder}: no folder of images; expected one of {', '.join(map(repr, IMAGE_FOLDERS))}")


def read_sugarcrepe(path: Path, records: Mapping[str, Any], image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Yield SugarCrepe's items with an image, a right and a wrong caption.

    The pattern is the name of the subset's file.

    Args:
        path: The JSON file.
        records: Its content.
        image_root: Folder of COCO's images.
        on_bad: Called with (reason, where) for items that cannot be used.

    Raises:
        UserError: If `image_root` is missing.
    """
    if image_root is None:
        raise UserError(f"{path}: SugarCrepe uses COCO's images; give their folder (val2017) as image_root")
    for number, record in records.items():
        where = f"{path}: item {number}"
        try:
            filename, *captions = required_texts(record, SUGARCREPE, where)
            images = [read_choice_image(image_root, filename)]
            yield Choice(f"{path.stem}/{number}", path.stem, images, captions, [0, -1])
        except BadSample as bad:
            on_bad(bad.reason, bad.where)


def read_choice_image(root: str, name: str) -> bytes:
    """Read the bytes of an image file, and check that it can be decoded.

    Raises:
        BadSample: If the path leaves `root`, or the file is missing or unreadable.
    """
    path = files.join_inside(root, name)
    if path is None:
        raise BadSample("unsafe_path", name)
    try:
        data = files.read_bytes(path)
    except (OSError, UnicodeEncodeError):  # the latter: half a character, which JSON can write
        raise BadSample("missing_image", path.encode(errors="replace").decode()) from None
    decode_image(data, path)
    return data


def required_texts(record: Any, names: tuple[str, ...], where: str) -> list[str]:
    """Get the texts of a record.

    Args:
        record: The record.
        names: Names of the texts.
        where: Address of the record, for messages.

    Raises:
        BadSample: If a text is missing or empty, or is not a string.
    """
    if not isinstance(record, dict):
        raise BadSample("unreadable_row", where)
    texts = []
    for name in names:
        text = record.get(name)
        if not isinstance(text, str) or not text:
            raise BadSample("missing_caption", where)
        texts.append(text)
    return texts
