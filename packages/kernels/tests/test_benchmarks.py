"""The runner of the benchmark on a CPU: meaningless sizes, and the page that states it."""

import csv
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vfm_kernels.dispatch.choosing import Size

FOLDER = Path(__file__).parent.parent / "benchmarks"
MODULES = ("run", "problems", "shapes", "checking", "timing", "steps", "page", "records", "faults", "fill_table")


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, FOLDER / "run.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def runner(monkeypatch):
    """Return the runner's module, which is in no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("run")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_without_a_gpu_the_runner_and_the_page_say_that_nothing_is_measured(tmp_path):
    assert run("--out", str(tmp_path)) == f"no CUDA device: nothing is measured; see {tmp_path}/kernels.md\n"
    page = (tmp_path / "kernels.md").read_text()
    assert "**Not measured.**" in page
    if not (FOLDER / "results/kernels.csv").exists():
        assert (FOLDER / "results/kernels.md").read_text() == page
    (tmp_path / "kernels.csv").write_text("measured")
    assert "the measured page is kept" in run("--out", str(tmp_path))


# What the suite compiles by inductor, a minute less than all, which `make kernels-wide` does.
SOME = {"attention", "masked_cosine_loss", "info_nce"}
ALL = SOME | {
    "matmul", "rotate", "swiglu_subln", "add_layer_norm", "mask_tokens", "gather_tokens", "scatter_tokens",
    "siglip_loss", "info_nce_all_pairs",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.needs("g++")
@pytest.mark.parametrize("ops", [ALL if "VFM_WIDE" in os.environ else SOME], ids=len)
def test_ops_and_training_steps_run_at_tiny_sizes_with_inductor(tmp_path, ops):
    """Each row of the real run, compiled by inductor as on a GPU: its backward is walked many times."""
    run(
        "--tiny",
        "--repeats",
        "2",
        "--out",
        str(tmp_path),
        *([] if ops == ALL else ["--only", *ops, "--steps", "EVA02-L"]),
    )
    rows = list(csv.DictReader((tmp_path / "kernels.csv").read_text().splitlines()))
    timed = [row for row in rows if row["milliseconds"]]
    assert {row["op"] for row in timed} == ops
    assert all(float(row["milliseconds"]) > 0 and float(row["num_bytes"]) > 0 and row["note"] for row in timed)
    assert not [row for row in rows if row["note"].startswith(("wrong", "failed"))]
    assert {row["direction"] for row in timed} == {"forward", "backward"}
    assert {row["implementation"] for row in timed} == {"torch", "torch.compile", "sdpa", "eager"}
    refused = {row["implementation"]: row["note"] for row in rows if not row["direction"]}
    assert refused["ours"] == "device is cpu; kernels need a CUDA device"
    steps = list(csv.DictReader((tmp_path / "steps.csv").read_text().splitlines()))
    assert len(steps) == (24 if ops == ALL else 8)
    assert {step["way"] for step in steps if step["milliseconds"]} == {
        "library", "library + padding", "library + torch.compile", "library + padding + torch.compile",
    }  # fmt: skip
    assert {step["note"] for step in steps if step["way"].startswith("ours")} == {refused["ours"]}
    page = (tmp_path / "kernels.md").read_text()
    assert "the numbers mean nothing" in page
    assert "- triton_short cannot run: device is cpu" in page
    run("--tiny", "--repeats", "2", "--out", str(tmp_path), *([] if ops == ALL else ["--only", *ops]))
    assert list(csv.DictReader((tmp_path / "kernels.csv").read_text().splitlines())) == rows  # nothing is timed again
    assert "xformers cannot run: " in page


def test_an_op_or_a_model_is_measured_anew_beside_the_others(runner, tmp_path, monkeypatch):
    ops, models = runner.Table(tmp_path / "kernels.csv", runner.Row), runner.Table(tmp_path / "steps.csv", runner.Step)
    numbers = dict.fromkeys(["relative_error", "milliseconds", "roofline_percent", "peak_mib"], 0.1 + 0.2)
    old = numbers | {"note": 'a, "quoted" kernel'}
    kept = [runner.Row(op, "(2)", "forward", "ours", **old) for op in ("swiglu_subln", "siglip_loss")]
    for row in (kept[0], runner.Row("gather_tokens", "old", "forward", "ours", **old), kept[1]):
        ops.append(row)
    for name in ("EVA-g", "CLIP-L/14"):
        models.append(runner.Step(name, "old", 1.5, peak_mib=1.0))
    new = runner.Row("gather_tokens", "new", "forward", "ours", **old)
    monkeypatch.setattr(runner, "_measured_rows", lambda *arguments: iter([new]))
    monkeypatch.setattr(
        runner, "measured_steps", lambda name, *arguments: iter([runner.Step(name, "new", 1.0, peak_mib=1.0)])
    )
    arguments = ["--only", "gather_tokens", "--steps", "CLIP-L/14", "--out", str(tmp_path), "--again"]
    monkeypatch.setattr(sys, "argv", ["run.py", "--tiny", *arguments])
    runner.main()
    assert runner.Table(tmp_path / "kernels.csv", runner.Row).rows == [*kept, new]
    assert [step.way for step in runner.Table(tmp_path / "steps.csv", runner.Step).rows] == ["old", "new"]


def test_costs_of_real_problems_follow_the_papers_formulas(runner):
    """EVA02-L's attention: 4 N^2 D operations and four tensors forward, 10 N^2 D and eight backward."""
    problems = [build(torch.device("meta"), **arguments) for build, arguments, _ in runner.REAL]
    smaller = [build(torch.device("meta"), **arguments | changes) for build, arguments, changes in runner.REAL]
    assert all(small.inputs[0].numel() < real.inputs[0].numel() for small, real in zip(smaller, problems, strict=True))
    heads = 256 * 16
    assert problems[0].forward.flops == heads * 4 * 257**2 * 64
    assert problems[0].backward.flops == heads * 10 * 257**2 * 64
    assert problems[0].forward.num_bytes == heads * 257 * 64 * 4 * 2
    assert problems[0].backward.num_bytes == heads * 257 * 64 * 8 * 2
    causal, crops = problems[14].forward, problems[15].forward
    assert causal.flops == 512 * 12 * 2 * 77**2 * 64
    assert crops.flops == 64 * 16 * 4 * (257**2 + 8 * 37**2) * 64


def test_tiny_attention_of_every_kind_is_right_in_the_librarys_forms(runner):
    """Packed crops among them, whose longest sequence is not the first at these sizes."""
    problems = [build(torch.device("cpu"), **arguments) for build, arguments, _ in runner.TINY]
    problems = [problem for problem in problems if problem.op == "attention"]
    assert {"causal", "crops", "rope"} <= {problem.shape.rpartition(" ")[2] for problem in problems}
    for problem in problems:
        errors = runner.check(problem)
        assert errors.keys() == {"sdpa", "eager"}
        assert all(not isinstance(error, str) and error.holds for error in errors.values()), errors


def test_wrong_and_failing_implementations_are_reported_and_not_timed(runner):
    cpu = torch.device("cpu")
    problem = runner.TINY[0][0](cpu, **runner.TINY[0][1])
    right = problem.implementations["eager"]
    problem.implementations.clear()
    problem.implementations.update(fa4=lambda qkv: right(qkv) * 1.1, fa3=lambda qkv: right(qkv.nothing))
    errors, roof = runner.check(problem), runner.Roof(1e9, 1e9)
    rows = [row for row in runner._rows(problem, errors, roof, cpu, 2) if row.direction]
    assert [row.note.partition(":")[0] for row in rows] == ["wrong", "wrong", "failed", "failed"]
    assert all(row.milliseconds is None for row in rows)


def test_ours_must_launch_our_kernels_repeat_its_bits_and_read_nothing(runner):
    """On a CPU nothing is launched, so whatever stands for ours is another implementation."""
    problem = runner.TINY[0][0](torch.device("cpu"), **runner.TINY[0][1])
    right, noise = problem.implementations["eager"], itertools.count(1)
    no_launch = "failed: it launched none of our kernels, so another implementation ran"
    problem.implementations["triton_stream"] = right
    assert runner.check(problem)["triton_stream"] == no_launch
    problem.implementations["triton_stream"] = lambda qkv: right(qkv) * next(noise)
    assert runner.check(problem)["triton_stream"] == f"{no_launch}; it is not bit-equal on repeat"
    problem.implementations["triton_stream"] = lambda qkv: right(qkv) * (1 + 0 * qkv[0, 0, 0, 0, 0].item())
    assert runner.check(problem)["triton_stream"] == f"{no_launch}; the host waits in _local_scalar_dense"


def test_a_failure_while_measuring_ends_only_its_row(runner, tmp_path):
    cpu, calls = torch.device("cpu"), iter(range(99))
    problem = runner.TINY[0][0](cpu, **runner.TINY[0][1])
    right = problem.implementations["eager"]

    def fails_later(qkv):
        if next(calls) > 2:
            raise RuntimeError("illegal memory access")
        return right(qkv)

    problem.implementations.clear()
    problem.implementations.update(fa3=fails_later, eager=right)
    rows = list(runner._rows(problem, runner.check(problem), runner.Roof(1e9, 1e9), cpu, 2))
    failed = [row.note for row in rows if row.direction and row.implementation == "fa3"]
    assert failed == ["failed: RuntimeError: illegal memory access"] * 2
    assert all(row.milliseconds for row in rows if row.implementation == "eager")


@pytest.fixture
def row(runner):
    return runner.Row(
        "info_nce", "(2)", "forward", "ours", 1e-3, 2.0, roofline_percent=9.0, peak_mib=1.0, note="kernel"
    )


def test_rows_are_on_disk_when_they_are_measured(runner, row, tmp_path, monkeypatch):
    def killed(*arguments):
        yield row
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_measured_rows", killed)
    monkeypatch.setattr(sys, "argv", ["run.py", "--tiny", "--only", "info_nce", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        runner.main()
    assert runner.Table(tmp_path / "kernels.csv", runner.Row).rows == [row]
    assert "2.000" in (tmp_path / "kernels.md").read_text()


@pytest.mark.parametrize("name", ["a stopped part", "a full disk"])
def test_a_planted_fault_of_a_run_is_found_and_loses_no_row(runner, tmp_path, name):
    faults = importlib.import_module("faults")
    assert name in faults.IN_A_RUN
    assert faults.IN_A_RUN[name](tmp_path)


def test_failed_rows_are_measured_again(runner, row, tmp_path):
    table = runner.Table(tmp_path / "kernels.csv", runner.Row)
    failed = runner.Row("info_nce", "(2)", "backward", "ours", note="failed: OutOfMemoryError: CUDA out of memory")
    for each in (row, failed):
        table.append(each)
    again = runner.Table(tmp_path / "kernels.csv", runner.Row)
    assert row.key in again
    assert failed.key not in again


def test_a_folder_has_the_results_of_one_card(runner, tmp_path):
    records = importlib.import_module("records")
    records.keep_about(tmp_path / "about.json", {"card": "H100", "versions": "torch 2"})
    records.keep_about(tmp_path / "about.json", {"card": "H100", "versions": "torch 2"})
    with pytest.raises(SystemExit, match="expected results of card A100, got H100; choose another folder by --out"):
        records.keep_about(tmp_path / "about.json", {"card": "A100", "versions": "torch 2"})


def test_ours_is_compared_with_the_best_of_the_others_and_with_the_roofline(runner, tmp_path):
    page = importlib.import_module("page")
    timing = importlib.import_module("timing").Timing

    def row(name: str, milliseconds: float):
        where, times = ("attention", "(1)", "forward", name), timing(milliseconds, 1.0, 2.0, 2**21, ("kernel_name",))
        floor = runner.Roof(3e12, 1e12).milliseconds(3e9, 1.0)
        size = Size("attention", 1, 1, 1, "bfloat16")
        return importlib.import_module("records").Row.of(where, size, 1e-3, 1, times, (3e9, 1.0), floor)

    rows = [row("triton_short", 2.0), row("fa3", 5.0), row("sdpa_flash", 4.0)]
    page.write(tmp_path / "kernels.md", {"card": "none"}, rows, [])
    lines = (tmp_path / "kernels.md").read_text().splitlines()
    assert "| (1) | forward | triton_short | 2.000 |  | 50 % | 2 | 2.00x | 1.0e-03 | kernel_name |" in lines
    assert "| (1) | forward | fa3 | 5.000 |  | 20 % | 2 |  | 1.0e-03 | kernel_name |" in lines


@pytest.mark.slow
def test_the_first_hours_on_a_gpu_are_rehearsed_on_a_cpu(tmp_path):
    """The parts that `test_ops_and_training_steps...` does not run; each writes its results and how it ended."""
    parts = ["versions", "tests-operations", "padding", "tuning", "training"]
    command = [sys.executable, FOLDER / "gpu_first.py", "--dry-run", "--out", str(tmp_path), "--only", *parts]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + (tmp_path / "gpu_first.json").read_text()
    record = json.loads((tmp_path / "gpu_first.json").read_text())
    assert [record[name]["ended"] for name in parts] == ["well"] * len(parts)
    tuned = list(csv.DictReader((tmp_path / "tuning.csv").read_text().splitlines()))
    assert len(tuned) == 12
    assert all(row["milliseconds"] for row in tuned if row["kernel"] != "attention_short"), tuned
    trained = list(csv.DictReader((tmp_path / "same_training.csv").read_text().splitlines()))
    assert len(trained) == 8
    assert {row["op"] for row in csv.DictReader((tmp_path / "kernels.csv").read_text().splitlines())} == {"matmul"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_what_is_missing_for_a_gpu_run_is_named_before_it(tmp_path):
    command = [sys.executable, FOLDER / "gpu_first.py", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("missing: a CUDA device (torch finds none)")
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_or_hangs_is_recorded_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    first = importlib.import_module("gpu_first")
    (tmp_path / "fails.py").write_text("print('half'); raise SystemExit(3)")
    (tmp_path / "hangs.py").write_text("import time; print('begun', flush=True); time.sleep(60)")
    (tmp_path / "works.py").write_text("print('done')")
    parts = [first.Part(name, (str(tmp_path / f"{name}.py"),), writes=False) for name in ("fails", "hangs", "works")]
    monkeypatch.setattr(first, "PARTS", tuple(parts))
    monkeypatch.setattr(first, "LIMIT", 5)
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--dry-run", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2 of 3 parts have not ended well: fails, hangs"):
        first.main()
    record = json.loads((tmp_path / "gpu_first.json").read_text())
    assert {name: each["ended"] for name, each in record.items()} == {
        "fails": "exit code 3", "hangs": "stopped after 5 s", "works": "well",
    }  # fmt: skip
    assert (record["fails"]["tail"], record["hangs"]["tail"]) == ("half\n", "begun\n")
    (tmp_path / "works.py").unlink()
    (tmp_path / "fails.py").write_text("print('mended')")
    with pytest.raises(SystemExit, match="1 of 3 parts have not ended well: hangs"):
        first.main()  # what ended well is not run again
    assert json.loads((tmp_path / "gpu_first.json").read_text())["fails"]["ended"] == "well"


def test_parts_without_their_packages_are_left_out_and_time_that_is_up_ends_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    first = importlib.import_module("gpu_first")
    (tmp_path / "works.py").write_text("import vfm_kernels; print(vfm_kernels.__file__)")
    (tmp_path / "goes_on.py").write_text("import sys; sys.exit(75)")
    works = (str(tmp_path / "works.py"),)
    goes_on = first.Part("goes on", (str(tmp_path / "goes_on.py"),), writes=False)
    parts = (first.Part("needy", works, writes=False, needs=("no_such_package",)), goes_on)
    monkeypatch.setattr(first, "PARTS", (*parts, first.Part("works", works, writes=False)))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--dry-run"])
    with pytest.raises(SystemExit, match="1 of 3 parts have not ended well: goes on"):
        first.main()
    record = json.loads((tmp_path / "out/gpu_first.json").read_text())
    assert record["needy"]["ended"] == "left out: no_such_package not installed"
    assert record["goes on"]["ended"] == "unfinished; the same command goes on"
    assert record["works"]["tail"] == f"{first.SOURCES}/vfm_kernels/__init__.py\n"
    monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--dry-run", "--minutes", "0.1"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1 of 3"):
        first.main()
    assert capsys.readouterr().out == "needy: not begun, the time is up; the same command goes on\n"
