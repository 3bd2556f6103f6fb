"""Import questions from MMVP's folder, JSON lines or LLaVA's json (`mllm.questions`).

Sources of the formats: Tong et al. 2024 (arXiv:2401.06209), `Questions.csv`. Liu et al. 2023 (arXiv:2304.08485).
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vfm.data import BadSample, Question, decode_image, write_questions
from vfm.plugin import Context, QuestionDataset, ReadSettings, UserError, files
from vfm_diva.mllm.stages import MllmQuestions

MMVP_FILE = "Questions.csv"
MMVP_COLUMNS = ("Index", "Question", "Options", "Correct Answer")
MMVP_FOLDERS = ("MMVP Images", "MMVP_Images", "images")
MMVP_LETTERS = ["(a)", "(b)"]
MMVP_LENGTH = 300  # questions of the whole benchmark
# In the published answers the two images of these pairs are swapped: tusks long and short, sitting and standing.
MMVP_CORRECTED = {99: "(b)", 100: "(a)", 279: "(b)", 280: "(a)"}


@dataclass(frozen=True)
class QuestionRow:
    """Question before its image is stored.

    It has the path of the image, and the question with the image number 0.
    """

    image: Path
    question: Question


def import_questions(config: MllmQuestions, ctx: Context) -> QuestionDataset:
    """Copy the questions and their images. A question with an unreadable image is left out, with its partner."""
    rows = list(read_rows(config, ctx.skip))
    total = len(rows) + ctx.bad.total()
    usable = _with_partner(_readable(rows, ctx.skip), config.path, ctx.skip)
    ReadSettings(max_bad_fraction=config.max_bad_fraction).check_bad(ctx.bad, total, "questions")
    image_numbers: dict[Path, int] = {}
    numbered = []
    for row in usable:
        number = image_numbers.setdefault(row.image, len(image_numbers))
        numbered.append(replace(row.question, image=number))
    try:
        return write_questions(ctx.directory, map(_bytes, image_numbers), numbered)
    except ValueError as error:
        raise UserError(f"{config.path}: {error}") from None


def read_rows(config: MllmQuestions, on_bad: Callable[[str, str], None]) -> Iterator[QuestionRow]:
    """Yield the questions of a folder or file. `on_bad` gets (reason, where) of each question that is unusable.

    Raises:
        UserError: If there is no such file, or its format is unknown.
    """
    path = Path(config.path).expanduser()
    images = Path(config.image_root).expanduser() if config.image_root else path.parent
    if path.suffix == ".jsonl":
        yield from _read_lines(path, images, on_bad)
    elif path.suffix == ".json":
        yield from _read_conversations(path, images, on_bad)
    elif (path / MMVP_FILE).is_file():
        yield from _read_mmvp(path, config.labels, on_bad)
    else:
        raise UserError(f"{path}: expected a folder with {MMVP_FILE}, a file of JSON lines (.jsonl), or LLaVA's .json")


def _read_mmvp(folder: Path, labels: str, on_bad: Callable[[str, str], None]) -> Iterator[QuestionRow]:
    file = folder / MMVP_FILE
    try:
        text = io.StringIO(files.read_text(str(file)))
        table = list(csv.DictReader(text))
    except csv.Error as error:
        raise UserError(f"{file}: not readable as CSV: {error}") from None
    if not table or missing(table[0]):
        columns = ", ".join(table[0]) if table else "no rows"
        raise UserError(f"{file}: expected the columns {', '.join(MMVP_COLUMNS)}, got {columns}")
    images = next((folder / name for name in MMVP_FOLDERS if (folder / name).is_dir()), None)
    if images is None:
        raise UserError(f"{folder}: expected a folder of images, {' or '.join(MMVP_FOLDERS)}")
    for row in table:
        where = f"{file}: {row['Index']}"
        try:
            number = int(row["Index"])
            answer = row["Correct Answer"].strip().lower()
            if len(table) == MMVP_LENGTH and number in MMVP_CORRECTED:
                right = MMVP_CORRECTED[number]
                if labels == "corrected":
                    answer = right
                else:
                    answer = MMVP_LETTERS[1 - MMVP_LETTERS.index(right)]
            question = Question(
                key=str(number),
                image=0,
                text=f"{row['Question'].strip()} {row['Options'].strip()}",
                options=MMVP_LETTERS,
                answer=MMVP_LETTERS.index(answer),
                pair=(number - 1) // 2,
            )
        except (ValueError, AttributeError, TypeError):
            on_bad("unreadable_row", where)
            continue
        yield QuestionRow(images / f"{number}.jpg", question)


def missing(row: dict[str, Any]) -> list[str]:
    """List the columns of MMVP that a row lacks."""
    return [name for name in MMVP_COLUMNS if name not in row]


def _read_lines(path: Path, images: Path, on_bad: Callable[[str, str], None]) -> Iterator[QuestionRow]:
    for number, line in enumerate(files.read_text(str(path)).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            on_bad("broken_json", where)
            continue
        try:
            yield _row(record, str(number), images)
        except (ValueError, KeyError, TypeError, AttributeError):
            on_bad("unreadable_row", where)


def _read_conversations(path: Path, images: Path, on_bad: Callable[[str, str], None]) -> Iterator[QuestionRow]:
    """Yield the last question of each of LLaVA's conversations. Conversations without an image are left out."""
    try:
        records = json.loads(files.read_text(str(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"{path}: expected a list of conversations, got a {type(records).__name__}")
    for number, record in enumerate(records):
        try:
            turns = [str(turn["value"]).replace("<image>", "").strip() for turn in record["conversations"]]
            image = record.get("image")
        except (TypeError, KeyError, AttributeError):
            on_bad("unreadable_row", f"{path}: {number}")
            continue
        if not isinstance(image, str):
            on_bad("no_image", f"{path}: {record.get('id', number)}")
            continue
        if len(turns) < 2 or len(turns) % 2:
            on_bad("unanswered_question", f"{path}: {record.get('id', number)}")
            continue
        *history, text, answer = turns
        try:
            yield QuestionRow(images / image, Question(str(number), 0, text, [answer], 0, history=history))
        except ValueError:  # an empty answer
            on_bad("unreadable_row", f"{path}: {record.get('id', number)}")


def _row(record: dict[str, Any], number: str, folder: Path) -> QuestionRow:
    answer = record["answer"]
    options = record.get("options", [answer])
    history = record.get("history", [])
    texts = [record.get("question", ""), record.get("family", ""), *options, *history]
    are_lists = isinstance(options, list) and isinstance(history, list)
    if not are_lists or not all(isinstance(text, str) for text in texts):
        raise TypeError("expected texts")
    index = options.index(answer) if isinstance(answer, str) else answer
    pair = record.get("pair", -1)
    if type(index) is not int or type(pair) is not int:  # neither 0.7 nor true is a number of an option or a pair
        raise TypeError("expected whole numbers")
    key = str(record.get("key", number))
    return QuestionRow(folder / record["image"], Question(key, 0, texts[0], options, index, texts[1], pair, history))


def _readable(rows: list[QuestionRow], on_bad: Callable[[str, str], None]) -> list[QuestionRow]:
    """Select the questions whose image is readable. Images are read again when they are written, not held."""
    known: set[Path] = set()
    good = []
    for row in rows:
        try:
            # Several questions may share an image, which is decoded once.
            if row.image not in known:
                decode_image(_bytes(row.image), str(row.image))
                known.add(row.image)
            good.append(row)
        except BadSample as bad:
            on_bad(bad.reason, bad.where)
    return good


def _with_partner(rows: list[QuestionRow], where: str, on_bad: Callable[[str, str], None]) -> list[QuestionRow]:
    """Select the questions without a pair, and the pairs with both questions."""
    members = Counter(row.question.pair for row in rows)
    complete = []
    for row in rows:
        if row.question.pair >= 0 and members[row.question.pair] == 1:
            on_bad("missing_partner", f"{where}: {row.question.key}")
        else:
            complete.append(row)
    return complete


def _bytes(path: Path) -> bytes:
    try:
        return files.read_bytes(str(path))
    except (OSError, UserError):
        raise BadSample("missing_image", str(path)) from None
