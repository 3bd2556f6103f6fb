"""The command line: one line for each mistake and exit code 2, no traceback without --debug."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vfm
from cli_world import RECIPE, install, interruptible, run_alone, run_here, toys
from vfm.flow.recipe.shipped import shipped_files

__all__ = ["interruptible", "toys"]
HERE = Path(__file__).parent


def refused(*words: str | Path) -> list[str]:
    done = run_here(*words)
    assert done.code == 2, done
    assert "Traceback" not in done.err
    return done.errors


def test_run_ends_with_results_and_a_second_run_is_all_cached(toys):
    first = run_here("run", "r.yaml")
    assert first.code == 0
    assert first.out.count("✓") == 3
    assert "cached" not in first.out
    second = run_here("run", "r.yaml")
    assert second.code == 0
    assert second.out.count("cached") == 3
    assert vfm.Artifact.load("store/runs/r/artifacts/sum").values == [3 + 35**2 + 36**2 + 37**2]
    assert (toys / "store/runs/r/report.html").stat().st_size > 1000


def test_run_with_everything_cached_keeps_the_report(toys):
    run_here("run", "r.yaml")
    page, run_file = Path("store/runs/r/report.html"), Path("store/runs/r/run.json")
    drawn, written = page.stat().st_mtime_ns, run_file.read_bytes()
    assert run_here("run", "r.yaml").code == 0
    assert (page.stat().st_mtime_ns, run_file.read_bytes()) == (drawn, written)
    page.unlink()
    run_here("run", "r.yaml")
    assert page.exists()
    Path("r.yaml").write_text("description: Other words.\n" + RECIPE)
    run_here("run", "r.yaml")
    assert "Other words." in page.read_text()
    written = run_file.read_bytes()
    run_here("run", "r.yaml", "--fresh")
    assert run_file.read_bytes() != written


def test_quiet_run_prints_nothing(toys):
    assert run_here("run", "r.yaml", "--quiet").out == ""


def test_events_of_a_run_are_json_lines(toys):
    run_here("run", "r.yaml", "--quiet")
    events = [json.loads(line) for line in (toys / "store/runs/r/events.jsonl").read_text().splitlines()]
    assert [events[0]["type"], events[-1]["type"]] == ["run_started", "run_finished"]
    assert sum(event["type"] == "stage_finished" for event in events) == 3


def test_fresh_runs_every_stage_and_set_only_what_changed(toys):
    run_here("run", "r.yaml")
    assert "cached" not in run_here("run", "r.yaml", "--fresh").out
    changed = run_here("run", "r.yaml", "--set", "b.mode=plain").out
    assert next(line for line in changed.splitlines() if "cached" in line).startswith("✓ a")
    assert changed.count("cached") == 1


def test_plan_shows_what_run_would_do(toys):
    assert run_here("plan", "r.yaml").out.count(" new ") == 3
    run_here("run", "r.yaml")
    out = run_here("plan", "r.yaml", "--set", "sum.pause=1e-3").out
    assert (out.count(" cached "), out.count(" new ")) == (2, 1)
    assert not list(toys.glob("store/toy.add-*/x"))


def test_plan_writes_nothing(toys):
    run_here("plan", "r.yaml")
    assert [path.name for path in toys.iterdir()] == ["r.yaml"]


def test_every_mistake_of_a_recipe_is_a_line_with_exit_code_2(toys):
    broken = RECIPE.replace("count", "cuont").replace("squared", "cubed").replace("toy.add", "toy.ad")
    (toys / "r.yaml").write_text(broken)
    assert refused("run", "r.yaml") == [
        "error: r.yaml:2: a.cuont: unknown key; did you mean 'count'?",
        "error: r.yaml:3: b.mode: 'cubed' is not a valid choice; choose from 'plain', 'squared'",
        "error: r.yaml:4: sum.kind: unknown stage kind 'toy.ad'; did you mean 'toy.add'?",
    ]
    assert not (toys / "store").exists()


def test_wrong_order_and_wrong_type_of_an_input(toys):
    Path("r.yaml").write_text("stages:\n  - {kind: toy.add, name: s, inputs: [a]}\n  - {kind: toy.draw, name: a}\n")
    assert refused("plan", "r.yaml") == [
        "error: r.yaml:2: s.inputs[0]: 'a' comes later; a stage can only use earlier ones"
    ]
    Path("r.yaml").write_text(
        "stages:\n  - {kind: shapes.pool, name: pool}\n  - {kind: toy.add, name: s, inputs: [pool]}\n"
    )
    assert refused("plan", "r.yaml") == ["error: r.yaml:3: s.inputs[0]: expected a Numbers; 'pool' makes a Pool"]


@pytest.mark.parametrize("verb", ["run", "plan", "report"])
def test_unknown_recipe(verb, toys):
    (line,) = refused(verb, "qickstart")
    assert "'qickstart'" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "r.yaml", "--set", "a.cuont=3"), "set a.cuont=3: a.cuont: unknown key; did you mean 'count'?"),
        (("run", "r.yaml", "--set", "a.count"), "set a.count: expected NAME.FIELD=VALUE"),
        (("run", "r.yaml", "--set", "z.count=1"), "set z.count=1: no stage is named 'z'; known: a, b, sum"),
        (("run", "r.yaml", "--prepare", "z"), "--prepare z: no stage has this name; stages: a, b, sum"),
        (("stages", "toy.drow"), "unknown stage kind 'toy.drow'; did you mean 'toy.draw'?"),
        (("stages", "eva.pretrian"), "'eva.pretrian'"),
        (("show", "r.yaml"), "r.yaml"),
        (("show", "."), ".: no artifact found (artifact.json is missing)"),
        (("step", ".", "--events", "jsn"), "--events: expected text or json, got jsn"),
        (("step", "."), ".: not a prepared step (step.json is missing)"),
        (("init", "r.yaml"), "r.yaml already exists; choose another name, or remove it first"),
        (("init", "r.yaml/mine.yaml", "--like", "r.yaml"), "r.yaml: File exists"),
        (("report", "r.yaml"), "no run 'r.yaml' in store; runs: none"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_wrong_arguments_are_one_line(words, said, toys):
    (line,) = refused(*words)
    assert said in line


def test_unknown_option_and_verb_have_exit_code_2(toys):
    assert run_here("run", "r.yaml", "--fast").code == 2
    assert run_here("rnu").code == 2


def test_missing_outside_file_is_one_line_before_anything_runs(toys):
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.read, name: w, path: nowhere.txt}\n")
    assert refused("run", "r.yaml") == ["error: nowhere.txt: no such file or folder; w of r.yaml reads it"]
    assert not list(toys.glob("store/toy*"))


def test_user_errors_of_a_stage_are_lines_too(toys):
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.fail, name: f, number: sum, how: user}\n")
    assert refused("run", "r.yaml") == ["error: r.yaml:5: f: the numbers do not add up"]
    assert "Traceback" in run_alone("run", "r.yaml", "--debug", cwd=toys, path=_site(toys)).err


def test_a_bug_is_not_reported_as_a_mistake_of_the_user(toys):
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.fail, name: f, number: sum, how: bug}\n")
    done = run_alone("run", "r.yaml", cwd=toys, path=_site(toys))
    assert done.code == 1
    assert done.errors[-1] == "RuntimeError: a bug"


def _site(here: Path) -> Path:
    """A folder with the toy plugin, code and metadata, for a process of its own."""
    site = here / "site"
    install(site, "toys", "toy_plugin")
    shutil.copy(HERE / "toy_plugin.py", site)
    return site


@pytest.mark.parametrize("store", ["r.yaml", "r.yaml/store", "/dev/null/store"])
def test_store_that_cannot_be_written_is_one_line(store, toys):
    (line,) = refused("run", "r.yaml", "--store", store)
    assert "r.yaml" in line or "/dev/null" in line
    assert "Not a directory" in line or "expected a folder" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_store_without_permission_is_one_line(toys):
    (toys / "locked").mkdir(mode=0o500)
    (line,) = refused("run", "r.yaml", "--store", "locked/store")
    assert line == "error: locked/store: Permission denied"


def test_interrupted_run_resumes(toys):
    process = _started(toys, "--set", "sum.pause=0.2")
    for line in process.stdout:
        if line.startswith("  sum 1/6"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 130
    assert err.strip() == "interrupted; run the same command again to resume"
    assert "(resumes)" in run_here("run", "r.yaml", "--set", "sum.pause=0.2").out


def test_interrupt_while_a_string_is_executed_ends_with_the_same_exit_code(toys):
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.fail, name: f, number: sum, how: interrupted in exec}\n")
    process = _started(toys)
    _, err = process.communicate(timeout=1800)
    assert (process.returncode, err.strip()) == (130, "interrupted; run the same command again to resume")


def _started(toys: Path, *words: str) -> subprocess.Popen[str]:
    """Return a running `python -m vfm run r.yaml`."""
    return subprocess.Popen(
        [sys.executable, "-m", "vfm", "run", "r.yaml", *words],
        env={**os.environ, "PYTHONPATH": str(_site(toys))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C, and hands that down: this process must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_interrupt_that_a_library_turns_into_an_error_is_an_interrupt(toys, interruptible):
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.fail, name: f, number: sum, how: interrupted}\n")
    done = run_here("run", "r.yaml")
    assert (done.code, done.err.strip()) == (130, "interrupted; run the same command again to resume")


def test_output_into_a_closed_pipe_ends_quietly(toys):
    command = f"{sys.executable} -m vfm schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 1, 120)


def test_prepared_stage_is_run_by_step_and_then_found_by_run(toys):
    said = run_here("run", "r.yaml", "--prepare", "sum").out
    assert said.count("-m torch.distributed.run") == said.count(" -m vfm step ") == 2
    work = said.split()[-1]
    assert run_here("step", work).code == 0
    assert run_here("run", "r.yaml").out.count("cached") == 3
    (line,) = refused("run", "r.yaml", "--prepare", "sum")
    assert "is already finished" in line


def test_files_of_a_killed_step_do_not_get_into_the_artifact(toys):
    work = Path(run_here("run", "r.yaml", "--prepare", "sum").out.split()[-1])
    (work.with_suffix(".part") / "half.bin").write_bytes(b"x")
    run_here("step", work)
    assert not Path("store/runs/r/artifacts/sum/half.bin").exists()
    assert Path("store/runs/r/artifacts/sum/artifact.json").exists()


def test_show_prints_facts_provenance_and_files(toys):
    run_here("run", "r.yaml")
    out = run_here("show", "store/runs/r/artifacts/a").out
    assert out.startswith("Numbers ")
    assert '"kind": "toy.draw"' in out
    assert "artifact.json" in out


def test_report_is_drawn_again_and_names_the_runs(toys):
    run_here("run", "r.yaml")
    page = Path("store/runs/r/report.html")
    page.unlink()
    assert run_here("report", "r").code == 0
    assert page.exists()
    (line,) = refused("report", "other")
    assert line.endswith("; runs: r@1")


def test_report_of_a_run_that_lacks_an_artifact_is_one_line(toys):
    run_here("run", "r.yaml")
    shutil.rmtree(Path("store/runs/r/artifacts/sum").resolve())
    (line,) = refused("report", "r")
    assert "no artifact of sum" in line


def test_clean_removes_only_what_no_run_links_to(toys):
    run_here("run", "r.yaml")
    assert "nothing to remove" in run_here("clean").out
    run_here("run", "r.yaml", "--set", "b.seed=6")
    assert "nothing to remove" in run_here("clean").out
    assert run_here("clean", "--keep-runs", 1, "--dry-run").out.count("would remove") == 3
    assert run_here("clean", "--keep-runs", 1).out.count("removed") == 3
    assert run_here("run", "r.yaml", "--set", "b.seed=6").out.count("cached") == 3
    assert len(list(toys.glob("store/toy.*"))) == 3


def test_clean_keeps_the_checkpoints_of_an_interrupted_run(toys):
    work = run_here("run", "r.yaml", "--prepare", "sum").out.split()[-1]
    (Path(work) / "partial.txt").write_text("1 0")
    assert "nothing to remove" in run_here("clean").out
    run_here("run", "r.yaml", "--set", "a.count=1")
    assert "nothing to remove" in run_here("clean").out
    assert "removed toy.add" in run_here("clean", "--keep-runs", 1).out
    assert not Path(work).exists()


def test_doctor_passes_here_and_names_a_store_that_cannot_be_written(toys):
    assert run_here("doctor").code == 0
    done = run_here("doctor", "--store", "r.yaml")
    assert done.code == 2
    assert f"✗ store        {toys}/r.yaml: is a file, not a folder" in done.out
    assert f"{toys}/r.yaml: is a file" in run_here("doctor", "--store", "r.yaml/store").out


def test_stages_lists_kinds_and_the_fields_of_one(toys):
    listed = run_here("stages").out
    assert "toy.draw" in listed
    assert "shapes.pool" in listed
    fields = run_here("stages", "toy.read").out
    assert "the file; give it with --set" in fields
    assert "required" in fields


def test_plugins_names_the_package_of_each(toys):
    line = next(line for line in run_here("plugins").out.splitlines() if line.strip().startswith("toys"))
    assert "toys 1.0" in line
    assert "vfm_stages" in line


@pytest.mark.parametrize("like", shipped_files("recipes"))
def test_init_writes_the_shipped_recipe_with_its_comments(like, toys):
    said = run_here("init", "mine.yaml", "--like", like)
    assert said.code == 0
    assert "run it with: vfm run mine.yaml" in said.out
    first, _, written = Path("mine.yaml").read_text().partition("\n")
    assert first == "# yaml-language-server: $schema=vfm.schema.json"
    assert json.loads(Path("vfm.schema.json").read_text()) == json.loads(run_here("schema").out)
    assert written == shipped_files("recipes")[like].read_text()
    assert "#" in written


def test_init_makes_the_folder_of_its_file(toys):
    assert run_here("init", "new/folder/mine.yaml", "--like", "r.yaml").code == 0
    assert Path("new/folder/mine.yaml").read_text().endswith(Path("r.yaml").read_text())
    assert Path("new/folder/vfm.schema.json").is_file()


def test_plan_shows_the_resolved_recipe_of_one_with_a_base(toys):
    Path("mine.yaml").write_text("base: r.yaml\nstages: [{name: a, count: 9}]\n")
    out = run_here("plan", "mine.yaml").out
    assert "# mine.yaml, laid over r.yaml" in out
    assert "{kind: toy.draw, name: a, count: 9}" in out
    assert "# " not in run_here("plan", "r.yaml").out


def test_help_opens_with_what_vfm_is_for():
    lines = run_here("--help").out.splitlines()
    assert "Curate, train and evaluate vision foundation models from one recipe." in lines[2]
    assert not [line for line in lines if line.startswith("  ") and line.endswith("...")]


def test_recipe_for_packages_that_are_not_installed_names_them(toys):
    """With core alone, no plugin is installed; in the workspace all are, and the recipe is valid."""
    kinds = run_here("stages").out
    missing = [name for name in ("curation", "eva", "clip", "diva") if f" {name}." not in kinds]
    kind = {"curation": "match", "eva": "pretrain", "clip": "train", "diva": "tune"}
    stages = [f"  - {{kind: {name}.{kind[name]}, name: {name}}}\n" for name in missing]
    Path("four.yaml").write_text("stages:\n  - {kind: toy.draw, name: a}\n" + "".join(stages))
    done = run_here("plan", "four.yaml")
    assert done.code == (2 if missing else 0)
    for name in missing:
        assert f"needs a package that is not installed: uv pip install -e packages/{name} in a clone" in done.err
