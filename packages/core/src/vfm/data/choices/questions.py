"""Questions about images on disk.

`questions.parquet` has one row per question, and `images.arrow` has each image once. The Arrow file is mapped into
memory, so that any image can be read without the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.base import UserError
from vfm.interfaces import QuestionDataset
from vfm.storage.store_files import read_parquet, reading

QUESTIONS_FILE = "questions.parquet"
IMAGES_FILE = "images.arrow"
IMAGES = pa.schema({"image": pa.large_binary()})
QUESTIONS = pa.schema(
    {
        "key": pa.string(),
        "image": pa.int64(),
        "text": pa.string(),
        "options": pa.list_(pa.string()),
        "answer": pa.int32(),
        "family": pa.string(),
        "pair": pa.int64(),
        "history": pa.list_(pa.string()),
    }
)
IMAGES_AT_A_TIME = 256  # in memory, while their questions are written


@dataclass(frozen=True)
class Question:
    """A multiple-choice question about an image.

    Attributes:
        key: Name of the question.
        image: Number of its image in the dataset.
        text: The question. It may be empty if the only option is a caption.
        options: Distinct possible answers.
        answer: Index of the right option.
        family: Topic of the question.
        pair: Number of its pair, -1 without a pair.
        history: Earlier turns of the conversation, question and answer in alternation.

    Raises:
        ValueError: If there is no option, two options are equal, the answer is not an option, or an earlier
            question has no answer.
    """

    key: str
    image: int
    text: str
    options: list[str]
    answer: int
    family: str = ""
    pair: int = -1
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) < len(self.options) or not all(map(str.strip, self.options)):
            raise ValueError(f"{self.key}: expected options unlike each other, got {self.options}")
        if len(self.history) % 2:
            raise ValueError(f"{self.key}: expected an answer to each earlier question, got {len(self.history)} texts")
        if not 0 <= self.answer < len(self.options):
            raise ValueError(f"{self.key}: expected the index of one of {len(self.options)} options, got {self.answer}")

    def turns(self, option: int | None = None) -> list[str]:
        """List the questions and answers of the conversation.

        It ends with an option (default: the right one).
        """
        return [*self.history, self.text, self.options[self.answer if option is None else option]]


def write_questions(directory: Path, images: Iterable[bytes], questions: Sequence[Question]) -> QuestionDataset:
    """Write the images and questions of a dataset, and the artifact's facts.

    Args:
        directory: Folder of the artifact.
        images: Encoded images. A few are in memory at a time.
        questions: The questions about them.

    Raises:
        ValueError: If a question is about a missing image, or the questions of a pair do not fit each other.
    """
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    with pa.OSFile(str(directory / IMAGES_FILE), "wb") as sink, pa.ipc.new_file(sink, IMAGES) as writer:
        part: list[bytes] = []
        for image in images:
            part.append(image)
            count += 1
            if len(part) == IMAGES_AT_A_TIME:
                writer.write_batch(pa.record_batch([pa.array(part, pa.large_binary())], schema=IMAGES))
                part = []
        writer.write_batch(pa.record_batch([pa.array(part, pa.large_binary())], schema=IMAGES))
    families: dict[str, None] = {}
    for question in questions:
        if not 0 <= question.image < count:
            raise ValueError(f"{question.key}: expected one of {count} images")
        families[question.family] = None
    table = pa.Table.from_pylist(list(map(vars, questions)), QUESTIONS)
    pq.write_table(table, directory / QUESTIONS_FILE, write_page_checksum=True)
    return QuestionDataset.create(
        directory,
        num_questions=len(questions),
        num_images=count,
        num_pairs=len(pairs_of(questions)),
        families=list(families),
    )


def pairs_of(questions: Sequence[Question]) -> list[tuple[int, int]]:
    """Find the indices of the two questions of each pair, in order of appearance.

    Raises:
        ValueError: If a pair does not have two questions, or both ask the same and have the same answer.
    """
    members_of: defaultdict[int, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        if question.pair >= 0:
            members_of[question.pair].append(index)
    pairs = []
    for number, members in members_of.items():
        if len(members) != 2:
            raise ValueError(f"pair {number}: expected two questions, got {len(members)}")
        first = questions[members[0]]
        second = questions[members[1]]
        if (first.text, first.options, first.answer) == (second.text, second.options, second.answer):
            raise ValueError(f"pair {number}: expected different answers, got {first.options[first.answer]!r} twice")
        pairs.append((members[0], members[1]))
    return pairs


class Questions:
    """The questions of a dataset, with random access to the encoded images."""

    def __init__(self, dataset: QuestionDataset) -> None:
        """Read the questions.

        Raises:
            UserError: If a file is missing or damaged.
        """
        self.dataset = dataset
        path = dataset.path / QUESTIONS_FILE
        rows = read_parquet(path).to_pylist()
        with reading(path, "questions"):
            self.items = [Question(**row) for row in rows]

    def __len__(self) -> int:
        return len(self.items)

    def image(self, number: int) -> bytes:
        """Look up an encoded image by its number."""
        data: bytes = self._images[number].as_py()
        return data

    @cached_property
    def _images(self) -> pa.ChunkedArray:
        path = self.dataset.path / IMAGES_FILE
        with reading(path, "images"):
            images = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["image"]
        if len(images) != self.dataset.num_images:
            raise UserError(f"{path}: expected {self.dataset.num_images} images, got {len(images)}")
        return images
