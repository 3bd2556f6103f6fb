"""Scores of replies in lmms-eval's logs.

lmms-eval's own rules take letters and words from the middle of sentences in some tasks, and refuse logs of only some
items. Sources: Tong et al. 2024 (MMVP and CV-Bench, arXiv:2401.06209, arXiv:2406.16860), Li et al. 2023 (POPE,
arXiv:2305.10355), Fu et al. 2023 (MME, arXiv:2306.13394), Liu et al. 2023 (MMBench, arXiv:2307.06281), Li et al. 2024
(NaturalBench, arXiv:2410.14669).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm.plugin import Score, UserError
from vfm.statistics import Accuracy, ResampledScore
from vfm_diva.mllm.lmms_logs import Item
from vfm_diva.mllm.scores import pair_scores, ratio, resampled_rule, yes_no_scores

POPE_QUESTIONS_PER_IMAGE = 6
MMBENCH_COPIES = 1_000_000  # the other orders of a question's options have its index plus multiples of this
LETTERS = "ABCDE"
_LETTER = re.compile(
    r"^\W*([A-E])(?:$|[^\w\s'])|^\W*([A-E])\s*$|\b(?:answer|option)\b(?: is)?:?\s*\(?([A-E])\b(?!\s\w)", re.I
)
# The four items of a group of NaturalBench are its questions 0, 0, 1, 1 on its images 0, 1, 0, 1.
NATURAL_ANSWERS = (True, False, False, True)  # yes, or option A
NATURAL_PAIRS = {"question_accuracy": ((0, 1), (2, 3)), "image_accuracy": ((0, 2), (1, 3))}
CV_SOURCES = ("ADE20K", "COCO", "Omni3D")  # the last one is of CV-Bench-3D


@dataclass(frozen=True)
class ScoredReplies:
    """Scores of a model on a task. `correct` is per item of the log, for the table of predictions."""

    scores: Sequence[Score]
    correct: Sequence[bool]


def score_replies(task: str, items: Sequence[Item], where: str) -> ScoredReplies:
    """Score a model's replies.

    Args:
        task: Name of the task in lmms-eval.
        items: Items of its log.
        where: Path of the log, for errors.

    Raises:
        UserError: If the items lack fields of the task's log.
    """
    try:
        return _rule(task)(items)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a log of {task}: {type(error).__name__} {error}") from None


def _rule(task: str) -> Callable[[Sequence[Item]], ScoredReplies]:
    rules = {
        "mmvp": _mmvp,
        "pope": _pope,
        "mme": _mme,
        "mmbench": _mmbench,
        "naturalbench": _naturalbench,
        "cv": _cv_bench,
    }
    return rules[task.split("_", 1)[0]]


def _mmvp(items: Sequence[Item]) -> ScoredReplies:
    """Score pairs of MMVP. A pair asks the same question about two images, and both answers must be right."""
    right = []
    pairs = []
    for item in items:
        fact = item.row["mmvp_pair_accuracy"]
        right.append(letter_of(item.reply) == fact["gt"])
        pairs.append(fact["pair_index"])
    return ScoredReplies(_paired(right, pairs, [""] * len(items)), right)


def _pope(items: Sequence[Item]) -> ScoredReplies:
    """Score yes or no by LLaVA's rule. Six successive items are about one image."""
    answers = []
    for item in items:
        answers.append((item.row["pope_accuracy"]["ground_truth"] == "yes", pope_says_yes(item.reply)))
    is_yes, said_yes = np.array(answers).T
    images = np.array([item.doc_id for item in items]) // POPE_QUESTIONS_PER_IMAGE
    right = is_yes == said_yes
    scores: list[Score] = [Accuracy("accuracy", right, images, chance=0.5)]
    return ScoredReplies([*scores, *yes_no_scores(said_yes, is_yes, images)], right.tolist())


def _mme(items: Sequence[Item]) -> ScoredReplies:
    """Score two questions about each image, with the answers yes and no. Pairs are MME's accuracy+."""
    right = []
    units = []
    categories = []
    for item in items:
        fact = item.row.get("mme_perception_score") or item.row["mme_cognition_score"]
        right.append(says(item.reply) == str(item.row["target"]).strip(" .").lower())
        units.append(f"{fact['category']}/{fact['question_id']}")
        categories.append(fact["category"])
    return ScoredReplies(_paired(right, units, categories), right)


def _mmbench(items: Sequence[Item]) -> ScoredReplies:
    """Score questions whose options come in several orders: all must be right (circular evaluation)."""
    right = []
    indices = []
    for item in items:
        fact = item.row.get("gpt_eval_score") or item.row["submission"]
        right.append(option_of(item.reply, fact) == fact["answer"])
        indices.append(int(fact["index"]) % MMBENCH_COPIES)
    correct = np.array(right)
    _, questions = np.unique(indices, return_inverse=True)
    num_wrong = np.bincount(questions, weights=~correct)
    scores = [Accuracy("circular_accuracy", num_wrong == 0), Accuracy("accuracy", correct, np.array(indices))]
    return ScoredReplies(scores, right)


def _naturalbench(items: Sequence[Item]) -> ScoredReplies:
    """Score NaturalBench's groups of two questions on two images.

    The scores are for each answer, for both answers of a question, for both of an image, and for all four. A group that
    is not complete (`--limit`) counts only by its answers.
    """
    groups, places = np.divmod([item.doc_id for item in items], 4)
    right = np.array([_says_first(item) is NATURAL_ANSWERS[item.doc_id % 4] for item in items])
    scores: list[Score] = [Accuracy("accuracy", right, groups, chance=0.5)]
    names, sizes = np.unique(groups, return_counts=True)
    complete = names[sizes == 4]
    if len(complete):
        inside = np.isin(groups, complete)
        table = np.zeros((len(complete), 4), dtype=bool)  # the answers of each group, by their place
        table[np.searchsorted(complete, groups[inside]), places[inside]] = right[inside]
        for name, pairs in NATURAL_PAIRS.items():
            both = table[:, np.array(pairs)].all(axis=2)
            scores.append(Accuracy(name, both.ravel(), np.repeat(complete, 2), chance=1 / 4))
        scores.insert(0, Accuracy("group_accuracy", np.asarray(table.all(axis=1)), chance=1 / 16))
    return ScoredReplies(scores, right.tolist())


def _says_first(item: Item) -> bool | None:
    """Check whether a reply says yes or option A.

    Returns:
        None if it says neither yes nor no, or names neither A nor B.
    """
    if "letter corresponding" in str(item.row["input"]):
        return {"A": True, "B": False}.get(letter_of(item.reply))
    word = re.search(r"\b(yes|no)\b", item.reply.lower())
    return word[1] == "yes" if word else None


def _cv_bench(items: Sequence[Item]) -> ScoredReplies:
    """Score each task of CV-Bench, and compute the published score.

    In the published score, 2D's two sources weigh as much as 3D's one.
    """
    right = []
    sources = []
    tasks = []
    for item in items:
        fact = item.row["cv_bench_acc"]
        right.append(letter_of(item.reply) == fact["gt_content"])
        sources.append(CV_SOURCES.index(fact["source"]))
        tasks.append(fact["task"])
    correct = np.array(right)
    scores: list[Score] = []
    if len(np.unique(sources)) == len(CV_SOURCES):
        counts = np.zeros((len(items), len(CV_SOURCES), 2), dtype=np.int64)
        counts[np.arange(len(items)), sources, 0] = right
        counts[np.arange(len(items)), sources, 1] = 1
        flat = counts.reshape(len(items), -1)
        value = float(cv_bench_score(flat.sum(axis=0)))
        scores.append(ResampledScore("score", value, len(items), partial(resampled_rule, cv_bench_score, flat)))
    scores.append(Accuracy("accuracy", correct))
    for task in dict.fromkeys(tasks):
        scores.append(Accuracy(f"accuracy/{task}", correct[np.array(tasks) == task]))
    return ScoredReplies(scores, right)


def cv_bench_score(counts: ArrayLike) -> NDArray[np.float64]:
    """Compute (ADE20K + COCO) / 4 + Omni3D / 2 from the right and all answers of each source, (..., 6)."""
    right, total = np.moveaxis(np.asarray(counts, dtype=np.float64).reshape(*np.shape(counts)[:-1], 3, 2), -1, 0)
    weighted: NDArray[np.float64] = ratio(right, total) @ np.array([1 / 4, 1 / 4, 1 / 2])
    return weighted


def _paired(right: Sequence[bool], units: Sequence[Any], families: Sequence[str]) -> list[Score]:
    """Score pairs and single items. An item without its partner (`--limit`) counts only as a single item."""
    members: dict[Any, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    # Items of a unit depend on each other, so intervals resample units.
    numbers = np.empty(len(right), dtype=np.int64)
    pairs = []
    for number, indices in enumerate(members.values()):
        numbers[indices] = number
        if len(indices) == 2:
            pairs.append((indices[0], indices[1]))
    correct = np.array(right)
    two = np.full(len(right), 2)
    single: Score = Accuracy("accuracy", correct, numbers, chance=0.5)
    paired = pair_scores(correct, pairs, two, families) if pairs else []
    return [*paired, single]


def letter_of(reply: str) -> str:
    """Find the letter of an option that a reply names, or return an empty text.

    The letter stands alone ("A", "(a)"), is followed by punctuation ("A. open") or by "answer is" or "option". "a
    person" names none.
    """
    match = _LETTER.search(reply.strip())
    if not match:
        return ""
    return next((letter.upper() for letter in match.groups() if letter), "")


def option_of(reply: str, options: Mapping[str, Any]) -> str:
    """Find the letter of an option that a reply names, or the only option whose text is in the reply."""
    letter = letter_of(reply)
    if letter:
        return letter
    named = []
    for letter in LETTERS:
        text = str(options.get(letter) or "").strip().lower()
        if text not in ("", "nan") and text in reply.lower():
            named.append(letter)
    return named[0] if len(named) == 1 else ""


def pope_says_yes(reply: str) -> bool:
    """Check for a yes by LLaVA's rule.

    The first sentence of the reply must not contain the words "no" or "not".
    """
    words = reply.split(".")[0].replace(",", "").split()
    return not {"No", "not", "no"} & set(words)


def says(reply: str) -> str:
    """Extract yes or no, if it is the first word of a reply, or return an empty text."""
    word = re.match(r"\W*(yes|no)\b", reply.lower())
    return word[1] if word else ""
