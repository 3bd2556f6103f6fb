"""The benchmarks run as in their README, and compare the same mathematics."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vfm.plugin import Metric, Report

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments, "--out", str(folder / "found")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "found.md").read_text(encoding="utf-8") == done.stdout
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_mask_statistics_are_near_the_released_ones(tmp_path):
    found = run("mask_statistics", tmp_path, "--masks", "5000")
    for name, released in found["released"].items():
        if name != "smallest count":
            assert found["block"][name] == pytest.approx(released, abs=0.03), name
    assert found["block_exact"]["smallest count"] == 105
    assert found["block_exact"]["centre masked"] == pytest.approx(0.752, abs=0.03)


def test_both_steps_of_the_comparison_have_equal_losses(tmp_path):
    found = run("pretrain", tmp_path, "--quick")
    assert found["step"]["mean losses apart"] < 1e-5
    assert found["step"]["teacher's share"] > 0
    cached = found["cached"]
    assert cached["fp16"]["cosine to exact"] > 0.99999
    assert cached["int8"]["cosine to exact"] > 0.999
    assert cached["int8"]["bytes an image"] < 0.3 * cached["fp32"]["bytes an image"]
    assert cached["int8"]["loss on exact targets"] == pytest.approx(cached["fp32"]["loss on exact targets"], abs=0.01)


def test_memory_is_measured_by_case_and_counted_by_recipe(tmp_path):
    found = run("memory", tmp_path, "--quick")
    least = found["measured"].pop("nothing but imports")
    assert all(least < size < 4 * 2**30 for size in found["measured"].values())
    row = found["counted"]["eva_02_ti"]
    assert row["weights"] == row["gradients"] == row["optimizer"] / 2
    assert row["weights"] / 4 == pytest.approx(5.7e6, rel=0.02)
    # The input of a block is 100 images of 257 tokens of 192 channels in fp32, 20 MB; there are 12 blocks.
    assert 237e6 < row["activations with grad_checkpointing"] < row["activations"] / 2


def test_queries_and_windows_are_timed_beside_their_peers(tmp_path):
    found = run("segment_speed", tmp_path, "--quick")
    (step,), (encoder,) = found["steps"].values(), found["windows"].values()
    assert step["ratio"] == step["transformers"] / step["vfm"]
    assert encoder["ratio"] == encoder["global"] / encoder["windows"]


@pytest.mark.parametrize("name", ["masks", "memory", "pretrain", "segment_speed"])
def test_results_in_the_repository_are_complete(name):
    assert (BENCHMARKS / "results" / f"{name}.md").is_file()
    assert json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_jitter_runs_beside_torchvisions_classes(tmp_path):
    found = run("jitter", tmp_path, "--quick")
    assert len(found["64"]) == 3


def test_cascade_runs_without_its_peer(tmp_path):
    found = run("cascade", tmp_path, "--quick")
    assert all(found[mode]["vfm step"] > 0 for mode in ("softmax", "sigmoid"))


def test_the_step_of_a_video_and_the_bare_loop_have_equal_losses(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "video_step.py"), "--quick", "--out", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["mean losses apart"] < 1e-5


def test_rows_have_the_losses_of_padded_batches_with_fewer_tokens(tmp_path):
    found = run("padded", tmp_path, "--rounds", "1", "--row", "3")
    for tokens, row in zip(found["tokens"].values(), found["measured"].values(), strict=True):
        assert tokens["packed"] <= tokens["padded to the longest"] <= tokens["squares"]
        assert row["losses apart"] < 1e-6
        assert row["gradients apart"] < 1e-4
    assert tokens["packed"] < 0.8 * tokens["padded to the longest"]  # of several resolutions
    assert row["packed, bytes"] < 0.9 * row["padded, bytes"]


def write_reports(run: Path, stage: str, metric: str, scores: dict[str, list[float]]) -> None:
    """Write a report for each seed, with the scores of the models in percent."""
    for seed, values in enumerate(zip(*scores.values(), strict=True)):
        metrics = []
        for model, value in zip(scores, values, strict=True):
            metrics.append(
                Metric(name=metric, value=value / 100, n=300, low=0, high=1, model=f"{model}@{seed}").model_dump()
            )
        Report.create(run / "artifacts" / f"{stage}@{seed}", task="segmentation", dataset="val", metrics=metrics)


def test_the_gain_of_eva_is_divided_by_the_rule_of_the_recipe(tmp_path):
    """Frozen, the pool gives a tenth of the gain of 2 points. Tuned, EVA has no gain."""
    frozen = {"eva": [22.0, 23.2, 21.9], "eva_of_pool": [20.2, 21.3, 20.1], "untrained": [20.0, 21.1, 19.9]}
    write_reports(tmp_path, "frozen", "dense_miou", {**frozen, "teacher": [20.0, 20.1, 20.2]})
    tuned = {
        "tuned_eva": [25.0, 24.0, 26.0],
        "tuned_of_pool": [25.1, 24.1, 25.9],
        "tuned_untrained": [25.5, 23.0, 27.0],
    }
    write_reports(tmp_path, "tuned_miou", "miou", tuned)
    command = [sys.executable, str(BENCHMARKS / "dense_claim.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "frozen: margin 1.02, most of the gain is from the scenes" in done.stdout
    assert "tuned: margin -0.08, no gain to divide" in done.stdout
    assert "| frozen, `eva` - `eva_of_pool` | +1.8 (1.7 to 2.0) | 0.06 |" in done.stdout


STUDENTS = {"scratch": [3.1, 3.9], "from_eva": [5.0, 6.2], "from_unmasked": [8.0, 9.4]}
ENCODERS = {"untrained": [5.8, 5.5], "eva": [13.3, 13.9], "unmasked": [20.6, 19.1], "teacher": [24.5, 22.1]}
MASKS = {
    "curves": ("mean_over_log_samples", STUDENTS),
    "zero_shot": ("acc1", STUDENTS),
    "probe": ("lp_acc1", ENCODERS),
}


def write_masks(run: Path, num_seeds: int = 2, suffix: str = "", without: str = "") -> None:
    """Write the evaluations of `mask_images`, of all models but one."""
    for stage, (metric, scores) in MASKS.items():
        kept = {model: values[:num_seeds] for model, values in scores.items() if model != without}
        write_reports(run, f"{stage}{suffix}", metric, kept)


def compare_masks(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "mask_claim.py"), *map(str, words)], capture_output=True, text=True
    )


def test_masks_are_compared_if_nothing_is_missing_and_controls_are_printed(tmp_path):
    write_masks(tmp_path / "run")
    stopped = tmp_path / "stopped/artifacts/curves@1"  # the other run has finished this one
    stopped.parent.mkdir(parents=True)
    stopped.symlink_to(tmp_path / "nowhere")
    done = compare_masks(tmp_path / "run", tmp_path / "stopped")
    assert done.returncode == 0, done.stderr
    assert "end point: +3.0, +3.2; +3.1 (1.8 to 4.4)" in done.stdout
    assert "gate, teacher minus random weights: +18.7, +16.6" in done.stdout
    write_masks(tmp_path / "controls", num_seeds=1, suffix="_controls")
    done = compare_masks(tmp_path / "controls")
    assert done.returncode == 0, done.stderr
    assert "| `from_eva` | 5.0 | 5.0 |" in done.stdout


def test_masks_of_one_seed_or_without_some_scores_are_one_line(tmp_path):
    write_masks(tmp_path / "one", num_seeds=1)
    write_masks(tmp_path / "no_teacher", without="teacher")
    write_masks(tmp_path / "no_probe")
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"no_probe/artifacts/probe@{seed}")
    write_masks(tmp_path / "gap")
    shutil.rmtree(tmp_path / "gap/artifacts/zero_shot@1")
    write_masks(tmp_path / "unfinished")
    (tmp_path / "unfinished/artifacts/probe@2").symlink_to(tmp_path / "nowhere")
    write_masks(tmp_path / "controls", suffix="_controls")
    encoders = "; ".join(f"probe/lp_acc1 of {model} for 0, 1" for model in sorted(ENCODERS))
    students = "; ".join(f"zero_shot/acc1 of {model} for 1" for model in sorted(STUDENTS))
    for name, line in {
        "one": "expected two or more seeds, got 0",
        "no_teacher": "expected scores of the seeds 0, 1, missing probe/lp_acc1 of teacher for 0, 1",
        "no_probe": f"expected scores of the seeds 0, 1, missing {encoders}",
        "gap": f"expected scores of the seeds 0, 1, missing {students}",
        "unfinished": "expected runs that have finished, missing probe@2",
        "controls": "expected one seed of controls, got 0, 1",
        "none": f"expected runs with evaluations, got none in {tmp_path / 'none'}",
    }.items():
        done = compare_masks(tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith(f"mask_claim.py: error: {line}\n")


def test_weaker_teachers_are_of_the_same_seeds(tmp_path):
    write_masks(tmp_path / "run")
    write_masks(tmp_path / "weaker", without="teacher")
    done = compare_masks(tmp_path / "run", "--weaker", tmp_path / "weaker")
    line = "--weaker: expected scores of the seeds 0, 1, missing probe/lp_acc1 of teacher for 0, 1"
    assert done.stderr.endswith(f"error: {line}\n")
    write_reports(tmp_path / "weaker", "probe_blank", "lp_acc1", {"brief": [17.3, 16.9]})
    done = compare_masks(tmp_path / "run", "--weaker", tmp_path / "weaker")
    assert "end point, change from the weaker teacher: +0.0 (" in done.stdout
    shutil.rmtree(tmp_path / "weaker/artifacts/curves@1")
    done = compare_masks(tmp_path / "run", "--weaker", tmp_path / "weaker")
    assert done.stderr.endswith("error: --weaker: expected the seeds 0, 1, got 0\n")


def write_curve(training: Path, objects: list[float], rare: float) -> None:
    """Write the scores of a detector, the first before a third of its steps, with `rare` added for the rare classes."""
    training.mkdir(parents=True)
    lines = []
    for step, value in zip((200, 400, 600, 800, 1000), objects, strict=True):
        classes = {"val/box_ap": value / 100, "val/box_ap_freq_r": (value + rare * (step >= 400)) / 100}
        lines += [{"step": step, "split": "train"}, {"step": step, "split": "val", **classes}]
        lines.append({"step": step, "split": "val", "val/objects/box_ap": value / 100})
    (training / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def compare_matched(run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "vocabulary_gap.py"), "--matched", str(run)]
    return subprocess.run([*command, "--image", str(run / "curves.png")], capture_output=True, text=True)


def test_starts_are_compared_at_the_same_ap_of_objects_and_not_at_the_same_step(tmp_path):
    """EVA is 10 points ahead at each step, and 3 or 4 points at the same AP of objects."""
    for seed, rare in ((20, 3), (21, 4)):
        write_curve(tmp_path / f"artifacts/eva_120@{seed}", [5, 30, 28, 40, 50], rare)
        write_curve(tmp_path / f"artifacts/random_120@{seed}", [45, 20, 25, 35, 40], 0)
    (tmp_path / "artifacts/eva_120@22").mkdir()  # a seed that is not finished
    done = compare_matched(tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.replace("-0.0", "0.0").replace("+0.0", "0.0")
    assert "| AP of the rare classes, at the same AP of objects: open | +3.5 (-2.9 to 9.9) | +3.0, +4.0 |" in table
    assert "| AP of all classes, at the same AP of objects: equal | 0.0 (0.0 to 0.0) | 0.0, 0.0 |" in table
    assert "| AP of objects, after the last step | +10.0 (10.0 to 10.0) | +10.0, +10.0 |" in table
    assert "common ranges: 29.0 to 40.0, 29.0 to 40.0" in done.stdout
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_starts_without_a_common_range_are_not_compared(tmp_path):
    for seed in (20, 21):
        write_curve(tmp_path / f"artifacts/eva_120@{seed}", [5, 30, 28, 40, 50], 3)
        write_curve(tmp_path / f"artifacts/random_120@{seed}", [5, 10, 15, 20, 25], 0)
    done = compare_matched(tmp_path)
    assert done.returncode == 1
    assert "expected curves that share a range of AP of objects, got 29.0 to 25.0" in done.stderr
