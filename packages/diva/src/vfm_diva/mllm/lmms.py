"""Run lmms-eval in a separate environment, and report its logs with paired tests (`eval.lmms`)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import get_token

from vfm.eval import write_report
from vfm.plugin import Context, Evaluated, ModelResult, Report, Score, UserError, short_name
from vfm.train import resolve_device
from vfm_diva.mllm.lmms_folders import check_folder
from vfm_diva.mllm.lmms_logs import Item, check_same_items, find_log, newest_log, read_log
from vfm_diva.mllm.lmms_rules import score_replies
from vfm_diva.mllm.stages import EvalLmms

LOG_FILE = "lmms_eval.log"
OWN_PATHS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")  # of this environment, wrong for lmms-eval's
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|NotFound|Interrupt|Exit)\b(?::.*)?$")
_NO_CAUSE = "RetryError"  # it only reports that other errors were raised before
_UNANSWERED = re.compile(r"\bError (.*) in generating$")
LONGEST = 400  # characters of a message that are shown


def evaluate_lmms(config: EvalLmms, ctx: Context) -> Report:
    """Run the models without logs, read the logs of all models, and write the report."""
    checkpoints = {short_name(ref): ctx.load(ref) for ref in config.models}
    logs = {}
    for name, checkpoint in checkpoints.items():
        logs[name] = run_lmms(config, ctx, name, checkpoint.path)
    for name, folder in config.folders.items():
        logs[name] = run_lmms(config, ctx, name, Path(folder))
    for name, folder in config.logs.items():
        logs[name] = Path(folder)
    return write_report(config, ctx, score_logs(config, logs), checkpoints)


def run_lmms(config: EvalLmms, ctx: Context, name: str, folder: Path) -> Path:
    """Run the tasks that have no log yet, each in a process, so that a run after a crash continues.

    Returns:
        The folder of the logs.

    Raises:
        UserError: If lmms-eval failed. The message has its last error.
    """
    check_folder(folder, name)
    out = ctx.work / "lmms" / name
    for number, task in enumerate(config.tasks):
        ctx.progress(number, len(config.tasks), "tasks", model=name)
        if (out / task / "done").is_file():
            continue
        shutil.rmtree(out / task, ignore_errors=True)  # of a run that did not end
        (out / task).mkdir(parents=True)
        output = out / task / LOG_FILE
        with output.open("wb") as log:
            done = subprocess.run(
                lmms_command(config, folder, task, out / task),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if name not in OWN_PATHS},
                check=False,
            )
        text = read_output(output)
        if done.returncode or not newest_log(out / task, task):  # it ends with 0 after an exception, too
            raise UserError(f"{name}: lmms-eval failed in {task}: {last_error(text)} (its output: {output})")
        errors = unanswered(text)
        if errors:
            raise UserError(f"{name}: {len(errors)} items of {task} got no reply: {errors[0]} (its output: {output})")
        (out / task / "done").touch()
    return out


def lmms_command(config: EvalLmms, folder: Path, task: str, out: Path) -> list[str]:
    """Build the command line that evaluates a folder on a task of lmms-eval.

    Args:
        config: Settings of the evaluation.
        folder: Folder of the model.
        task: Name of the task.
        out: Folder for the results.

    Raises:
        UserError: If the device of runtime does not exist, or a comma is in an argument.
    """
    device = config.arguments.get("device") or str(resolve_device(config.runtime))
    dtype = "float32" if device == "cpu" else "auto"  # LLaVA's float16 is slow on a CPU
    arguments = {"pretrained": str(folder.resolve()), "device": device, "device_map": device, "dtype": dtype}
    arguments |= config.arguments
    unfit = [value for value in arguments.values() if "," in value]
    if unfit:
        raise UserError(f"lmms-eval separates its arguments by commas, so none may be in one: {unfit[0]}")
    limit = ["--limit", str(config.limit)] if config.limit else []
    return [
        *config.command,
        *("--model", "llava_hf", "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())),
        *("--tasks", task, "--batch_size", "1", "--log_samples", "--output_path", str(out.resolve()), *limit),
    ]


def score_logs(config: EvalLmms, logs: Mapping[str, Path]) -> Evaluated:
    """Score the logs of all models, on the same items.

    Raises:
        UserError: If a log is missing or damaged, or two models have other items.
    """
    results: dict[str, ModelResult] = {}
    digest = hashlib.sha256()
    first_items = dict[str, list[Item]]()
    first = next(iter(logs))
    for name, folder in logs.items():
        scores: list[Score] = []
        tables: dict[str, dict[str, Any]] = {}
        for task in config.tasks:
            file = find_log(folder, task, name)
            items = read_log(file)
            check_same_items(first_items.setdefault(task, items), items, (first, name), task)
            answered = score_replies(task, items, str(file))
            scores += [replace(cast("Any", score), metric=f"{task}_{score.metric}") for score in answered.scores]
            tables[task] = _table(items, answered.correct)
        results[name] = ModelResult(scores, tables, {"tasks": list(config.tasks), "limit": config.limit})
    for task in config.tasks:
        for item in first_items[task]:
            digest.update(item.doc_hash.encode())
    return Evaluated(digest.hexdigest(), results)


def _table(items: Sequence[Item], correct: Sequence[bool]) -> dict[str, Any]:
    """Build the columns of the predictions."""
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for item, is_correct in zip(items, correct, strict=True):
        columns["doc_id"].append(item.doc_id)
        columns["doc_hash"].append(item.doc_hash)
        columns["reply"].append(item.reply)
        columns["correct"].append(is_correct)
    return columns


def read_output(file: Path) -> str:
    """Read the output of lmms-eval, without the Hugging Face token.

    lmms-eval writes the token among its settings.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    token = get_token()
    if token and token in text:
        text = text.replace(token, "***")
        file.write_text(text, encoding="utf-8")
    return text


def last_error(output: str) -> str:
    """Find the last line of the last traceback. Without a traceback, it is the last line."""
    lines = _lines(output)
    raised = [line for line in lines if _EXCEPTION.match(line) and _NO_CAUSE not in line]
    last = (raised or lines or ["no output"])[-1]
    return last.strip()[:LONGEST]


def unanswered(output: str) -> list[str]:
    """Find the errors of items that got an empty reply because the model failed."""
    errors = []
    for line in _lines(output):
        match = _UNANSWERED.search(line)
        if match:
            errors.append(match[1][:LONGEST])
    return errors


def _lines(output: str) -> list[str]:
    """Split the output into lines without colours and spaces at the end. Empty lines are left out."""
    lines = _COLOURS.sub("", output).replace("\r", "\n").split("\n")
    return list(filter(None, map(str.rstrip, lines)))
