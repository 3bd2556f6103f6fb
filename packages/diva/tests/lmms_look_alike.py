"""Logs as lmms-eval 0.7 writes them with `--log_samples`, and a program that writes them as its command line does.

The keys and their order are those of `EvaluationTracker.save_results_samples`, the metrics those of the tasks'
`process_results`; `doc` and `arguments` are dropped there, and `resps` where it equals `filtered_resps`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Reply = Callable[[int, str], str]
"""The reply to an item, given its number and the right answer."""
MME = [("existence", 4), ("count", 4), ("commonsense_reasoning", 2)]


class RetryError(Exception):
    """As that of `tenacity`: it only says that another one was raised."""


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def row(doc_id: int, target: str, reply: str, prompt: str, **metrics: Any) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "target": target,
        "filtered_resps": reply,
        "token_counts": [{"output_tokens": 1}],
        "doc_hash": hash_of(prompt),
        **metrics,
        "input": prompt,
    }


def mmvp(reply: Reply, pairs: int = 20) -> list[dict[str, Any]]:
    rows = []
    for index in range(2 * pairs):
        truth = "AB"[index % 2]
        said = reply(index, truth)
        fact = {"index": index, "pair_index": index // 2, "pred": said, "pred_letter": said[:1], "gt": truth}
        fact["is_correct"] = fact["pred_letter"] == truth
        rows.append(row(index, truth, said, f"open ? {index}", mmvp_accuracy=fact, mmvp_pair_accuracy=fact))
    return rows


def pope(reply: Reply, images: int = 10) -> list[dict[str, Any]]:
    rows = []
    for index in range(6 * images):
        truth = ("yes", "no")[index % 2]
        said = reply(index, truth)
        fact = {"question_id": str(index), "score": float(said.lower().strip() == truth), "prediction": said.lower()}
        fact["ground_truth"] = truth
        names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
        rows.append(row(index, truth, said, f"is there ? {index}", **{f"pope_{name}": fact for name in names}))
    return rows


def mme(reply: Reply) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for category, count in MME:
        for number in range(2 * count):
            truth = ("Yes", "No")[number % 2]
            said = reply(len(rows), truth)
            fact = {"question_id": f"{category}/{number // 2}.png", "category": category}
            fact["score"] = float(said == truth)  # type: ignore[assignment]
            kind = "mme_cognition_score" if "reasoning" in category else "mme_perception_score"
            rows.append(row(len(rows), truth, said, f"{category} {number}", **{kind: fact}))
    return rows


def mmbench(reply: Reply, questions: int = 6, copies: int = 2) -> list[dict[str, Any]]:
    rows = []
    for copy in range(copies):
        for number in range(questions):
            answer = "ABCD"[(number + copy) % 4]
            options = {letter: f"option {(place - copy) % 4}" for place, letter in enumerate("ABCD")} | {"E": "nan"}
            said = reply(len(rows), answer)
            fact = {"index": number + copy * 1_000_000, "question": "which ?", "answer": answer, "prediction": said}
            fact |= {"hint": "nan", "source": "x", "split": "dev", "category": "c", "L2-category": "l", **options}
            rows.append(row(len(rows), answer, said, f"{copy} {number}", gpt_eval_score=fact, submission=fact))
    return rows


def naturalbench(reply: Reply, groups: int = 20) -> list[dict[str, Any]]:
    """Write groups of two questions on two images. The score is the answer: 1 yes or A, 0 no or B, -1 neither."""
    rows = []
    for index in range(4 * groups):
        by_letter = index // 4 % 2
        truth = (("Yes", "No"), ("A", "B"))[by_letter][index % 4 in (1, 2)]
        said = reply(index, truth)
        words = said.lower().replace(",", " ").replace("(", " ").replace(")", " ").split()
        first = next((word for word in words if word in (("yes", "no"), ("a", "b"))[by_letter]), "")
        fact = {"id": index, "score": {"yes": 1, "a": 1, "no": 0, "b": 0}.get(first, -1)}
        ending = ("Please answer Yes or No.", "Please output the letter corresponding to the correct option.")[
            by_letter
        ]
        metrics = {f"naturalbench_{name}": fact for name in ("G_ACC", "Q_ACC", "I_ACC", "Acc")}
        rows.append(row(index, "answer", said, f"question {index // 2} on {index % 2} {ending}", **metrics))
    return rows


def cv_bench(reply: Reply) -> list[dict[str, Any]]:
    kinds = [("ADE20K", "2D", "Count")] * 8 + [("COCO", "2D", "Relation")] * 5 + [("Omni3D", "3D", "Depth")] * 6
    rows = []
    for index, (source, kind, task) in enumerate(kinds):
        truth = "ABCD"[index % 4]
        said = reply(index, truth)
        fact = {"id": index, "gt_content": truth, "pred_parsed": said[:1], "pred": said, "type": kind, "task": task}
        fact |= {"source": source, "is_correct": said == truth}
        rows.append(row(index, f"({truth})", said, f"which ? {index}", cv_bench_acc=fact))
    return rows


TASKS: dict[str, Callable[[Reply], list[dict[str, Any]]]] = {
    "mmvp": mmvp,
    "pope_adv": pope,
    "mme": mme,
    "mmbench_en_dev_static": mmbench,
    "naturalbench": naturalbench,
    "cv_bench": cv_bench,
}


def write_log(folder: Path, task: str, rows: Sequence[dict[str, Any]], date: str = "20261101_120000") -> Path:
    """Write a log into a folder for the model, as lmms-eval does."""
    file = folder / "llava__model" / f"{date}_samples_{task}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return file


def write_model(folder: Path, **changes: Any) -> Path:
    """Write the files of a LLaVA model that are looked at before a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", **changes}))
    (folder / "processor_config.json").write_text("{}")
    return folder


def main(words: Sequence[str]) -> None:
    """Behave as the command line: settings are printed, and an exception, after which the exit code is 0."""
    print({"token": os.environ.get("HF_TOKEN")}, flush=True)
    try:
        evaluate(words)
    except Exception as error:
        traceback.print_exc()
        line = f"ERROR | cli_evaluate:614 - Error during evaluation: {error}. Please set `--verbosity=DEBUG`"
        print(f"\x1b[31m{line} to get more information.\x1b[0m", flush=True)


def evaluate(words: Sequence[str]) -> None:
    """Give right answers to all but every seventh item."""
    given = dict(zip(words[::2], words[1::2], strict=False))
    settings = dict(one.split("=", 1) for one in words[words.index("--model_args") + 1].split(","))
    if "lost" in settings["pretrained"]:
        print("\x1b[31mERROR | generate_until:99 - Error out of memory in generating\x1b[0m", flush=True)
    if "broken" in settings["pretrained"]:
        try:
            raise ConnectionError(f"Couldn't reach {settings['device']}, {settings['device_map']}, {settings['dtype']}")
        except ConnectionError as error:
            raise RetryError("RetryError[<Future state=finished raised ConnectionError>]") from error
    task, out = words[words.index("--tasks") + 1], Path(words[words.index("--output_path") + 1])
    assert given["--model"] == "llava_hf"
    assert "--log_samples" in words
    write_log(out, task, TASKS[task](lambda index, truth: "" if index % 7 == 0 else truth))


if __name__ == "__main__":
    main(sys.argv[1:])
