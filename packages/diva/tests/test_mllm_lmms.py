"""`eval.lmms` on logs in lmms-eval's form, and on a program that writes them: scores, paired tests, what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import diva_toy
import lmms_look_alike
import mllm_toy
from vfm.interfaces import ExportedModel
from vfm.models.stages import Export
from vfm.plugin import Artifact, Context, Preflight, Report, UserError
from vfm_diva.mllm.lmms import lmms_command
from vfm_diva.mllm.lmms_logs import Item, read_log
from vfm_diva.mllm.lmms_rules import cv_bench_score, letter_of, option_of, pope_says_yes, says, score_replies
from vfm_diva.mllm.stages import LMMS_DATE, LMMS_VERSION, EvalLmms

TASKS = list(lmms_look_alike.TASKS)


def right(index: int, truth: str) -> str:
    return truth


def half(index: int, truth: str) -> str:
    """Right except for every fourth item."""
    return "I cannot say" if index % 4 == 0 else truth


def logs_of(folder: Path, reply: lmms_look_alike.Reply, tasks: list[str] = TASKS) -> str:
    for task in tasks:
        lmms_look_alike.write_log(folder, task, lmms_look_alike.TASKS[task](reply))
    return str(folder)


def config(**changes: Any) -> EvalLmms:
    return EvalLmms(name="lmms", **{"tasks": TASKS, **changes})


def run(stage: EvalLmms, folder: Path, **inputs: Artifact) -> Report:
    made: Report = diva_toy.run(stage, folder, **inputs)
    return made


def test_logs_get_scores_and_paired_tests(tmp_path: Path) -> None:
    logs = {"before": logs_of(tmp_path / "before", half), "after": logs_of(tmp_path / "after", right)}
    report = run(config(logs=logs), tmp_path / "report")
    found = {name: {m.name: m.value for m in report.metrics if m.model == name} for name in logs}
    assert all(found["after"][f"{task}"] == 1 for task in ("mmvp_pair_accuracy", "pope_adv_f1", "mme_pair_accuracy"))
    assert found["before"]["mmvp_accuracy"] == 0.75
    assert found["before"]["mmvp_pair_accuracy"] == 0.5  # items 0, 4, 8, ... are of different pairs
    assert found["before"]["pope_adv_accuracy"] == 0.75 + 0.25  # "I cannot say" is a yes by LLaVA's rule, and right
    assert found["before"]["mme_pair_accuracy/existence"] == 0.5
    # Wrong are items 0, 4 and 8 of two copies of six questions: question 0, 4 and 2.
    assert found["before"]["mmbench_en_dev_static_circular_accuracy"] == 0.5
    pairs = next(one for one in report.comparisons if one.metric == "mmvp_pair_accuracy")
    assert (pairs.model, pairs.difference, pairs.test) == ("after", 0.5, "exact McNemar")
    assert pairs.p_value == pytest.approx(2**-9)  # ten pairs won, none lost
    assert (report.path / "predictions/mmvp.parquet").is_file()


def test_the_program_runs_once_per_task_and_model(tmp_path: Path) -> None:
    for name in ("one", "two"):
        lmms_look_alike.write_model(tmp_path / name)
    command = [sys.executable, lmms_look_alike.__file__]
    stage = config(folders={name: str(tmp_path / name) for name in ("one", "two")}, command=command)
    report = run(stage, tmp_path / "report")
    found = {m.name: m.value for m in report.metrics if m.model == "two"}
    assert 0.5 < found["mmvp_pair_accuracy"] < 1
    files = list((tmp_path / "report/work/lmms").rglob("*.jsonl"))
    assert len(files) == 2 * len(TASKS)
    before = {file: file.stat().st_mtime_ns for file in files}
    run(stage, tmp_path / "report")  # after a crash, what is complete stays
    assert {file: file.stat().st_mtime_ns for file in files} == before
    failing = stage.model_copy(update={"command": [sys.executable, "-c", "import sys; sys.exit('OSError: full')"]})
    with pytest.raises(UserError, match="one: lmms-eval failed in mmvp: OSError: full"):
        run(failing, tmp_path / "again")
    (tmp_path / "one/config.json").unlink()
    with pytest.raises(UserError, match=r"one: .* has no config\.json"):
        run(stage, tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "broken",
            r"a: lmms-eval failed in mmvp: ConnectionError: Couldn't reach cpu, cpu, float32 \(its output: .*log",
        ),
        ("lost", r"a: 1 items of mmvp got no reply: out of memory \(its output: .*lmms_eval\.log\)"),
    ],
)
def test_an_error_is_reported_though_the_program_ends_with_0(
    tmp_path: Path, name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_mine")
    folder = lmms_look_alike.write_model(tmp_path / name)
    command = [sys.executable, lmms_look_alike.__file__]
    stage = config(folders={"a": str(folder)}, tasks=["mmvp"], command=command, runtime={"device": "cpu"})
    with pytest.raises(UserError, match=line):
        run(stage, tmp_path / "report")
    (output,) = tmp_path.rglob("lmms_eval.log")
    assert "'token': '***'" in output.read_text()


def test_the_command_pins_its_environment_and_names_the_folder(tmp_path: Path) -> None:
    stage = config(folders={"a": str(tmp_path)}, limit=8, runtime={"device": "cpu"})
    words = lmms_command(stage, tmp_path, "mmvp", tmp_path / "out")
    assert words[:5] == ["uvx", "--exclude-newer", LMMS_DATE, "--from", f"lmms_eval[video-legacy]=={LMMS_VERSION}"]
    assert words[words.index("--model_args") + 1] == f"pretrained={tmp_path},device=cpu,device_map=cpu,dtype=float32"
    assert words[-2:] == ["--limit", "8"]
    stage = stage.model_copy(update={"arguments": {"device": "cuda:1", "attn_implementation": "sdpa"}})
    words = lmms_command(stage, tmp_path, "mmvp", tmp_path / "out")
    expected = f"pretrained={tmp_path},device=cuda:1,device_map=cuda:1,dtype=auto,attn_implementation=sdpa"
    assert words[words.index("--model_args") + 1] == expected
    with pytest.raises(UserError, match="separates its arguments by commas"):
        lmms_command(config(folders={"a": "x"}), tmp_path / "a,b", "mmvp", tmp_path)


def test_preflight_says_in_a_line_what_is_missing(tmp_path: Path) -> None:
    def line(**changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            config(**changes).preflight(Preflight({}, {}))
        return str(caught.value)

    absent = line(folders={"a": str(tmp_path)}, command=["uvx-is-absent"])
    assert absent.startswith("uvx-is-absent is not installed")  # a run writes the stage's name before it
    assert "has no config.json" in line(folders={"a": str(tmp_path)}, command=[sys.executable])
    logs = logs_of(tmp_path / "logs", right, ["mmvp"])
    assert "has no *_samples_pope_adv.jsonl" in line(logs={"a": logs}, tasks=["mmvp", "pope_adv"])
    config(logs={"a": logs}, tasks=["mmvp"]).preflight(Preflight({}, {}))
    assert "'a' is named more than once" in line(logs={"a": logs}, folders={"a": logs}, tasks=["mmvp"])
    with pytest.raises(ValidationError, match="expected models, folders or logs"):
        config()


def test_preflight_refuses_models_that_lmms_eval_cannot_read(tmp_path: Path) -> None:
    command = [sys.executable, lmms_look_alike.__file__]
    clip = lmms_look_alike.write_model(tmp_path / "clip", model_type="clip")
    one_token = lmms_look_alike.write_model(tmp_path / "one", image_seq_length=1)
    bare = lmms_look_alike.write_model(tmp_path / "bare")
    (bare / "processor_config.json").unlink()
    for folder, message in (
        (clip, r"a: .*clip/config\.json: expected a LLaVA model .* \(llava, .*\), got model_type clip"),
        (one_token, r"a: .*one/config\.json: image_seq_length 1: lmms-eval gives .* patches .*\(tokens: class\)"),
        (bare, r"a: .*bare has no processor_config\.json"),
    ):
        with pytest.raises(UserError, match=message):
            config(folders={"a": str(folder)}, command=command).preflight(Preflight({}, {}))
    artifact = ExportedModel.create(clip, format="hf")
    stage = config(models=["a"], command=command)
    with pytest.raises(UserError, match="got model_type clip"):
        stage.preflight(Preflight({}, {"a": artifact.path}))
    class_token = mllm_toy.train_config(tokens="class")
    later = mllm_toy.train_config(init="first")
    with pytest.raises(UserError, match="a: lmms-eval gives a model the patches"):
        stage.preflight(Preflight({"a": later, "first": class_token}, {}))
    with pytest.raises(UserError, match=r"a: expected a LLaVA model .* got format: hf"):
        stage.preflight(Preflight({"a": Export(name="a", model="clip")}, {}))
    stage.preflight(Preflight({"a": Export(name="a", model="clip", format="llava", base="LLAVA")}, {}))


def test_preflight_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = config(folders={"a": str(lmms_look_alike.write_model(tmp_path / "a"))})
    uvx = tmp_path / "bin" / stage.command[0]
    uvx.parent.mkdir()
    uvx.write_text("#!/bin/sh\n")
    uvx.chmod(0o755)
    monkeypatch.setenv("PATH", str(uvx.parent))
    monkeypatch.setenv("HF_TOKEN", "a token")
    stage.preflight(Preflight({}, {}))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"with a token: run `hf auth login`, or set HF_TOKEN"):
        stage.preflight(Preflight({}, {}))


def test_logs_of_other_items_or_damaged_ones_are_one_line(tmp_path: Path) -> None:
    logs = {"one": logs_of(tmp_path / "one", right, ["mmvp"]), "two": logs_of(tmp_path / "two", right, ["mmvp"])}
    file = next((tmp_path / "two").rglob("*.jsonl"))
    whole = file.read_text().splitlines()

    def line(lines: list[str]) -> str:
        file.write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError) as caught:
            run(config(logs=logs, tasks=["mmvp"]), tmp_path / "report")
        return str(caught.value)

    assert "only one has item 39 (40 and 39 items)" in line(whole[:-1])
    other = json.dumps({**json.loads(whole[3]), "doc_hash": "0"})
    assert "item 3 is another one for one than for two" in line([*whole[:3], other, *whole[4:]])
    assert "item 0 appears twice" in line([*whole, whole[0]])
    assert "line 1: expected an item with doc_id" in line([whole[0][:40], *whole[1:]])
    assert "not a log of mmvp: KeyError 'mmvp_pair_accuracy'" in line(
        [json.dumps({k: v for k, v in json.loads(one).items() if "mmvp" not in k}) for one in whole]
    )


def test_replies_may_have_any_line_separator_but_must_be_utf8(tmp_path: Path) -> None:
    file = tmp_path / "x_samples_mmvp.jsonl"
    reply = "A\u2028because\x85of\x0cthis"
    row = {"doc_id": 0, "doc_hash": "h", "filtered_resps": [reply]}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [item.reply for item in read_log(file)] == [reply]
    file.write_bytes(json.dumps(row).encode() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"x_samples_mmvp\.jsonl: line 2: expected an item with doc_id"):
        read_log(file)


def test_the_newest_log_is_read(tmp_path: Path) -> None:
    lmms_look_alike.write_log(tmp_path / "a", "mmvp", lmms_look_alike.mmvp(right), "20261102_090000")
    lmms_look_alike.write_log(tmp_path / "a", "mmvp", lmms_look_alike.mmvp(half), "20261101_090000")
    report = run(config(logs={"a": str(tmp_path / "a")}, tasks=["mmvp"]), tmp_path / "report")
    assert report.metrics[0].value == 1


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"), ("(a)", "A"), ("b.", "B"), ("B. Closed", "B"), ("The answer is (B).", "B"), ("Option A", "A"),
        ("A person is sitting", ""), ("a dog", ""), ("I cannot say", ""), ("", ""), ("C: red", "C"),
    ],
)  # fmt: skip
def test_letter_of_a_reply(reply: str, letter: str) -> None:
    assert letter_of(reply) == letter


def test_words_of_a_reply() -> None:
    assert [pope_says_yes(reply) for reply in ("yes.", "Yes, there is", "No", "no, not here", "There is not. Yes")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert [says(reply) for reply in ("Yes", "no.", " NO, never", "maybe", "yesterday")] == ["yes", "no", "no", "", ""]
    options = {"A": "a red car", "B": "a blue car", "C": "nan", "D": None}
    assert option_of("It is a blue car.", options) == "B"
    assert option_of("a red car or a blue car", options) == ""


def test_a_model_of_an_earlier_stage_is_run(tmp_path: Path) -> None:
    folder = lmms_look_alike.write_model(tmp_path / "llava")
    made = ExportedModel.create(folder, format="llava")
    stage = config(models=["llava"], tasks=["mmvp"], command=[sys.executable, lmms_look_alike.__file__])
    context: Context = diva_toy.context(stage, tmp_path / "report", llava=made)
    context.directory.mkdir(parents=True)
    assert isinstance(stage.run(context), Report)


def items_of(task: str, reply: lmms_look_alike.Reply) -> list[Item]:
    rows = lmms_look_alike.TASKS[task](reply)
    return [Item(row["doc_id"], row["doc_hash"], row["filtered_resps"], row) for row in rows]


def values_of(task: str, items: list[Item]) -> dict[str, float]:
    return {score.metric: score.value for score in score_replies(task, items, "log").scores}


def test_naturalbench_has_the_published_scores() -> None:
    generator = np.random.default_rng(0)
    others = generator.choice(["", "Yes", "No, it is not.", "A", "(B)", "maybe"], 80, p=[0.75, *[0.05] * 5]).tolist()
    items = items_of("naturalbench", lambda index, truth: others[index] or truth)
    answers = np.array(
        [[item.row["naturalbench_G_ACC"]["score"] for item in items[n : n + 4]] for n in range(0, 80, 4)]
    )
    right = answers == np.array([1, 0, 0, 1])  # as the benchmark's code compares them
    values = values_of("naturalbench", items)
    assert values["accuracy"] == right.mean()
    assert values["question_accuracy"] == np.mean([right[:, 0] & right[:, 1], right[:, 2] & right[:, 3]])
    assert values["image_accuracy"] == np.mean([right[:, 0] & right[:, 2], right[:, 1] & right[:, 3]])
    assert values["group_accuracy"] == right.all(axis=1).mean()
    assert 0 < values["group_accuracy"] < values["question_accuracy"] < values["accuracy"] < 1
    # `--limit 10`: two whole groups, and half of one, which counts by its answers alone.
    limited = values_of("naturalbench", items[:10])
    assert limited["group_accuracy"] == right[:2].all(axis=1).mean()
    assert limited["accuracy"] == right.ravel()[:10].mean()
    assert set(values_of("naturalbench", items[:3])) == {"accuracy"}


def test_cv_bench_weighs_its_sources_as_published() -> None:
    items = items_of("cv_bench", half)
    facts = [item.row["cv_bench_acc"] for item in items]
    of = {
        name: [fact["is_correct"] for fact in facts if fact["source"] == name] for name in ("ADE20K", "COCO", "Omni3D")
    }
    ade, coco, omni = (np.mean(of[name]) for name in ("ADE20K", "COCO", "Omni3D"))
    values = values_of("cv_bench", items)
    assert values["score"] == pytest.approx(((ade + coco) / 2 + omni) / 2)
    assert values["score"] != pytest.approx(values["accuracy"])
    assert set(values) == {"score", "accuracy", *(f"accuracy/{task}" for task in ("Count", "Relation", "Depth"))}
    (score,) = (one for one in score_replies("cv_bench", items, "log").scores if one.metric == "score")
    low, high = score.interval()
    assert low < score.value < high
    assert "score" not in values_of("cv_bench_2d", items[:13])
    assert cv_bench_score(np.array([[1, 2, 0, 0, 3, 3]])).tolist() == [0.25 * 0.5 + 0.5]
