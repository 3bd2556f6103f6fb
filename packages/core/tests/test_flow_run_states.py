"""Runs that go on, failed or were stopped: what is listed and drawn of them, and what a rerun leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_world import RECIPE, Outcome, interruptible, run_here, toys
from test_report_watch import World, ended, world
from vfm.flow.plan.store import Store
from vfm.flow.records.run_states import state_of
from vfm.flow.records.runs import kept_runs

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
__all__ = ["interruptible", "toys", "world"]
STORE = Store(Path("store"))
FAILING = RECIPE + "  - {kind: toy.fail, name: bad, number: sum, how: HOW}\n"


def listed() -> dict[str, list[str]]:
    """The words that `vfm runs` shows of each run."""
    return {line.split()[0]: line.split()[1:] for line in run_here("runs").out.splitlines()}


def failed(how: str, *words: str) -> Outcome:
    Path("r.yaml").write_text(FAILING.replace("HOW", how))
    done = run_here("run", "r.yaml", *words)
    assert done.code
    return done


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("how", "state"), [("user", "failed"), ("interrupted in exec", "stopped")])
def test_a_run_that_did_not_finish_is_listed_with_start_and_command(
    how: str, state: str, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/vfm", "run", "r.yaml"])
    failed(how)
    day, moment, found, *about = listed()["r@1"]
    assert (found, about) == (state, ["../r.yaml", "vfm", "run", "r.yaml"])
    assert (len(day), len(moment)) == (len("2026-01-01"), len("00:00"))
    Path("r.yaml").write_text(RECIPE)
    assert run_here("run", "r.yaml").code == 0
    assert listed()["r@2"][3] == "s"


def test_a_run_is_running_until_its_process_ends(world: World) -> None:
    run = world.start_run()
    assert listed()["r@1"][2] == "running"
    done = run_here("report", "r@1")
    assert done.code == 0
    assert done.err == "r@1 is running; vfm report r@1 --watch draws its page until it ends\n"
    assert '<span class="pill running">' in world.page
    assert "Running for" in world.page
    assert "data-reload" not in world.page.partition("<body>")[0]
    run.kill()
    run.communicate()
    assert [state_of(one.directory, one.record) for one in kept_runs(STORE)] == ["stopped"]


def test_the_curves_of_a_training_that_stopped_are_drawn_and_overlaid(world: World) -> None:
    (world.here / "go").touch()
    assert ended(world.start_run(fails=True)).code == 2
    done = run_here("report", "r@1")
    words = "the page has its finished stages and the curves so far (r.yaml:4: second: the loss is not finite)"
    assert (done.code, done.err) == (0, f"r@1 has failed; {words}\n")
    assert "<h4>Training loss</h4>" in world.page
    assert '<span class="pill stopped">stopped</span>' in world.page
    assert "Took" in world.page
    (world.here / "r.yaml").write_text((world.here / "r.yaml").read_text().replace("fails: true", "fails: true, lr: 2"))
    assert run_here("run", "r.yaml").code == 2
    assert run_here("report", "r@1", "r@2").code == 0
    page = Path("comparison.html").read_text()
    assert "<h4>Training loss</h4>" in page
    assert "<td>lr</td>" in page.replace("<code>", "").replace("</code>", "")


def test_the_message_lists_runs_with_their_numbers(toys: Path) -> None:
    failed("user")
    assert run_here("report", "bad@1").errors == ["error: no run 'bad@1' in store; runs: r@1"]
    (STORE.run_directory("r@1") / "events.jsonl").unlink()
    (line,) = [line for line in run_here("report", "r@1").errors if line.startswith("error")]
    assert line.endswith("r@1: the run has not finished, and has written no events")


def test_a_rerun_that_makes_nothing_leaves_the_record_alone(toys: Path) -> None:
    assert run_here("run", "r.yaml").code == 0
    folder = STORE.run_directory("r@1")
    kept = [folder / "run.json", folder / "recipe.yaml", folder / "report.html"]
    before = [(file.read_bytes(), file.stat().st_ino) for file in kept]
    assert run_here("run", "r.yaml", "--set", "sum.runtime.threads=1").out.count("cached") == 3
    assert [(file.read_bytes(), file.stat().st_ino) for file in kept] == before
    kept[2].unlink()
    assert run_here("report", "r@1").code == 0
    assert '<span class="pill cached">' not in kept[2].read_text(), "the go that made the artifacts is reported"
    assert run_here("run", "r.yaml", "--set", "sum.runtime.threads=1", "--fresh").code == 0
    assert "threads: 1" in kept[1].read_text()
    assert "threads: 1" in json.loads(kept[0].read_text())["text"]


def test_a_run_that_is_resumed_has_the_recipe_of_its_last_go(toys: Path) -> None:
    failed("user", "--set", "sum.runtime.threads=1")
    failed("user", "--set", "sum.runtime.threads=2")
    record = json.loads((STORE.run_directory("r@1") / "run.json").read_text())
    assert "threads: 2" in record["text"]
    assert record["seconds"] is None
