"""Per-sample logs of lmms-eval (0.7), and their scores by vfm's rules.

A log is `<model>/<date>_samples_<task>.jsonl`, one line per item with `doc_id`, `doc_hash`, `target`, `filtered_resps`
(the reply) and one mapping per metric of the task. The reply is scored here because lmms-eval's own rules depend on
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vfm.plugin import Score, UserError
from vfm.statistics import Accuracy
from vfm_diva.mllm.scores import pair_scores, yes_no_scores

POPE_QUESTIONS_PER_IMAGE = 6
MMBENCH_COPIES = 1_000_000  # the other orders of a question's options have its index plus multiples of this
LETTERS = "ABCDE"
_LETTER = re.compile(
    r"^\W*([A-E])(?:$|[^\w\s'])|^\W*([A-E])\s*$|\b(?:answer|option)\b(?: is)?:?\s*\(?([A-E])\b(?!\s\w)", re.I
)


@dataclass(frozen=True)
class Item:
    """Item of a log: its identity, the model's reply, and the line of the log."""

    doc_id: int
    doc_hash: str
    reply: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class ScoredReplies:
    """Scores of a model on a task. `correct` is per item of the log, for the table of predictions."""

    scores: Sequence[Score]
    correct: Sequence[bool]


def find_log(folder: Path, task: str, name: str) -> Path:
    """Find the newest log of a task below a folder.

    Raises:
        UserError: If there is none.
    """
    log = newest_log(folder, task)
    if log:
        return log
    raise UserError(f"{name}: {folder} has no *_samples_{task}.jsonl; run lmms-eval with --log_samples")


def newest_log(folder: Path, task: str) -> Path | None:
    """Find the newest log of a task below a folder, if there is one."""
    return max(folder.rglob(f"*_samples_{task}.jsonl"), key=lambda file: file.name, default=None)


def read_log(file: Path) -> list[Item]:
    """Read the items of a log in the order of `doc_id`.

    Raises:
        UserError: If a line is damaged, an item appears twice, or there is none.
    """
    items = []
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")  # a reply may have other separators, such as U+2028
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        try:
            row = json.loads(line.decode())
            items.append(Item(int(row["doc_id"]), str(row["doc_hash"]), _reply(row["filtered_resps"]), row))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}: line {number}: expected an item with doc_id, doc_hash, filtered_resps") from None
    counts = Counter(item.doc_id for item in items)
    repeated = [doc for doc, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"{file}: item {repeated[0]} appears twice; two runs wrote into one file")
    if not items:
        raise UserError(f"{file}: the log has no items")
    return sorted(items, key=lambda item: item.doc_id)


def check_same_items(first: Sequence[Item], second: Sequence[Item], names: tuple[str, str], task: str) -> None:
    """Check that two models have answered the same items.

    Raises:
        UserError: If they have not. The message names the first difference.
    """
    first_hashes = {item.doc_id: item.doc_hash for item in first}
    second_hashes = {item.doc_id: item.doc_hash for item in second}
    missing = sorted(first_hashes.keys() ^ second_hashes.keys())
    if missing:
        name = names[0] if missing[0] in first_hashes else names[1]
        raise UserError(
            f"{task}: only {name} has item {missing[0]} ({len(first_hashes)} and {len(second_hashes)} items)"
        )
    unlike = [doc for doc in first_hashes if first_hashes[doc] != second_hashes[doc]]
    if unlike:
        raise UserError(
            f"{task}: item {unlike[0]} is another one for {names[0]} than for {names[1]} (doc_hash differs)"
        )


def score_replies(task: str, items: Sequence[Item], where: str) -> ScoredReplies:
    """Score a model's replies.

    Args:
        task: name of the task in lmms-eval.
        items: items of its log.
        where: path of the log, for errors.

    Raises:
        UserError: If the items lack fields of the task's log.
    """
    try:
        return _rule(task)(items)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a log of {task}: {type(error).__name__} {error}") from None


def _rule(task: str) -> Callable[[Sequence[Item]], ScoredReplies]:
    rules = {"mmvp": _mmvp, "pope": _pope, "mme": _mme, "mmbench": _mmbench}
    return rules[task.partition("_")[0]]


def _mmvp(items: Sequence[Item]) -> ScoredReplies:
    """Score pairs, which ask the same question about two images: both must be right."""
    facts = [item.row["mmvp_pair_accuracy"] for item in items]
    right = [letter_of(item.reply) == fact["gt"] for item, fact in zip(items, facts, strict=True)]
    return ScoredReplies(_paired(right, [fact["pair_index"] for fact in facts], [""] * len(items)), right)


def _pope(items: Sequence[Item]) -> ScoredReplies:
    """Score yes or no by LLaVA's rule. Six successive items are about one image."""
    is_yes = np.array([item.row["pope_accuracy"]["ground_truth"] == "yes" for item in items])
    said_yes = np.array([pope_says_yes(item.reply) for item in items])
    images = np.array([item.doc_id // POPE_QUESTIONS_PER_IMAGE for item in items])
    right = is_yes == said_yes
    scores: list[Score] = [Accuracy("accuracy", right, images, chance=0.5)]
    return ScoredReplies([*scores, *yes_no_scores(said_yes, is_yes, images)], right.tolist())


def _mme(items: Sequence[Item]) -> ScoredReplies:
    """Score two questions about each image, with the answers yes and no. Pairs are MME's accuracy+."""
    facts = [item.row.get("mme_perception_score") or item.row["mme_cognition_score"] for item in items]
    right = [says(item.reply) == str(item.row["target"]).strip(" .").lower() for item in items]
    units = [f"{fact['category']}/{fact['question_id']}" for fact in facts]
    return ScoredReplies(_paired(right, units, [fact["category"] for fact in facts]), right)


def _mmbench(items: Sequence[Item]) -> ScoredReplies:
    """Score questions whose options come in several orders: all must be right (circular evaluation)."""
    facts = [item.row.get("gpt_eval_score") or item.row["submission"] for item in items]
    right = [option_of(item.reply, fact) == fact["answer"] for item, fact in zip(items, facts, strict=True)]
    questions = np.array([int(fact["index"]) % MMBENCH_COPIES for fact in facts])
    each = np.array(right)
    all_right = np.array([each[questions == number].all() for number in np.unique(questions)])
    scores = [Accuracy("circular_accuracy", all_right), Accuracy("accuracy", each, questions)]
    return ScoredReplies(scores, right)


def _paired(right: Sequence[bool], units: Sequence[Any], families: Sequence[str]) -> list[Score]:
    """Score pairs and single items. An item without its partner (`--limit`) counts only as a single item."""
    members: dict[Any, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    pairs = [(both[0], both[1]) for both in members.values() if len(both) == 2]
    # Items of a unit depend on each other, so intervals resample units.
    numbers = np.array([list(members).index(unit) for unit in units])
    correct, two = np.array(right), np.full(len(right), 2)
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
    texts = {letter: str(options[letter]).strip().lower() for letter in LETTERS if options.get(letter)}
    named = [letter for letter, text in texts.items() if text not in ("", "nan") and text in reply.lower()]
    return named[0] if len(named) == 1 else ""


def pope_says_yes(reply: str) -> bool:
    """Check for a yes by LLaVA's rule: there is no "no" or "not" among the words of a reply's first sentence."""
    words = reply.split(".")[0].replace(",", "").split()
    return not {"No", "not", "no"} & set(words)


def says(reply: str) -> str:
    """Extract yes or no, if it is the first word of a reply, or return an empty text."""
    word = re.match(r"\W*(yes|no)\b", reply.lower())
    return word[1] if word else ""


def _reply(filtered: Any) -> str:
    while isinstance(filtered, list):
        filtered = filtered[0]
    if not isinstance(filtered, str):
        raise TypeError("expected a text")
    return filtered
