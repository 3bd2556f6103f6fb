"""A broken plugin is reported with its package and its mistake; listeners cannot change a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli_world import Outcome, install, run_alone

STAGE = """\
from typing import Literal
import vfm
class Made(vfm.Artifact):
    "Nothing much."
class Make(vfm.Stage):
    "Makes nothing much."
    kind: Literal["{kind}"] = "{kind}"
    def run(self, ctx: vfm.Context) -> Made:
        return Made.create(ctx.directory)
@vfm.hookimpl
def vfm_stages():
    return [Make]
"""


def by_address(address: str) -> str:
    """A plugin that names its stage by its address."""
    return STAGE.format(kind="x.y").replace("[Make]", f'{{"x.y": "{address}"}}')


def with_plugin(tmp_path: Path, *words: str, **sources: str) -> Outcome:
    """A command, with plugins whose modules have these sources."""
    site = tmp_path / "site"
    for name, source in sources.items():
        install(site, name, f"{name}_module")
        (site / f"{name}_module.py").write_text(source)
    return run_alone(*words, cwd=tmp_path, path=site)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nowhere_to_be_found\n", "No module named 'nowhere_to_be_found'"),
        ("def broken(:\n", "SyntaxError"),
        ("import vfm\n@vfm.hookimpl\ndef vfm_stage():\n    return []\n", "vfm_stage"),
        ("import vfm\n@vfm.hookimpl\ndef vfm_stages(extra):\n    return []\n", "extra"),
        ("import vfm\n@vfm.hookimpl\ndef vfm_stages():\n    return [int]\n", "vfm_stages must return stage types"),
        ("import vfm\n@vfm.hookimpl\ndef vfm_stages():\n    return 1 / 0\n", "ZeroDivisionError"),
        ("import vfm\n@vfm.hookimpl\ndef vfm_stages():\n    pass\n", "vfm_stages must return stage types"),
        (STAGE.format(kind="x.y").replace(" -> Made", ""), "to be annotated with a"),
        (STAGE.format(kind="x.y").replace("-> Made", "-> int"), "to be annotated with a"),
        (STAGE.format(kind="x.y").replace('Literal["x.y"]', "str"), "Literal"),
        (by_address("odd_module:Nothing"), "x.y cannot be loaded: AttributeError"),
        (by_address("nowhere:Make"), "No module named 'nowhere'"),
        (by_address("odd_module"), "x.y cannot be loaded"),
        (by_address("pathlib:Path"), "x.y cannot be loaded"),
        (
            by_address("odd_module:Make").replace('"x.y"', '"x.z"', 2),
            "expected a stage of kind x.y at odd_module:Make, got x.z",
        ),
    ],
    ids=[
        "module that does not import",
        "syntax error",
        "mistyped hook",
        "hook with an unknown argument",
        "not a stage",
        "hook that fails",
        "hook that returns nothing",
        "stage without an annotated result",
        "stage that makes no artifact",
        "kind that is not a literal",
        "address of a missing name",
        "address of a missing module",
        "address without a name",
        "address of another class",
        "address of another kind",
    ],
)
def test_broken_plugin_is_named_in_one_line(source, said, tmp_path):
    done = with_plugin(tmp_path, "stages", odd=source)
    assert done.code == 2
    (line,) = done.errors
    assert "'odd'" in line
    assert said in line


def test_a_stage_is_imported_from_its_address_when_its_kind_is_used(tmp_path):
    site = tmp_path / "site"
    install(site, "lazy", "lazy_module")
    hook = 'import vfm\n@vfm.hookimpl\ndef vfm_stages():\n    return {"x.y": "lazy_stages:Make"}\n'
    (site / "lazy_module.py").write_text(hook)
    stages = STAGE.format(kind="x.y").partition("@vfm.hookimpl")[0]
    (site / "lazy_stages.py").write_text(f"{stages}\nprint('imported')\n")
    for name, kind in (("used", "x.y"), ("other", "shapes.pool")):
        (tmp_path / f"{name}.yaml").write_text(f"stages:\n  - {{kind: {kind}, name: made}}\n")
    assert "imported" not in run_alone("plan", "other.yaml", cwd=tmp_path, path=site).out
    assert "imported" in run_alone("plan", "used.yaml", cwd=tmp_path, path=site).out
    assert run_alone("run", "used.yaml", cwd=tmp_path, path=site).code == 0
    (artifact,) = (tmp_path / "store").glob("x.y-*")
    shown = run_alone("show", artifact, cwd=tmp_path, path=site)  # imports the stage for the type of its artifact
    assert "Made" in shown.out, shown.err


def test_kind_of_two_plugins_is_rejected_with_both_names(tmp_path):
    one = STAGE.format(kind="x.y")
    done = with_plugin(tmp_path, "stages", one=one, two=one.replace("Made", "Other"))
    assert done.code == 2
    (line,) = done.errors
    assert re.fullmatch("error: two plugins have stage kind 'x.y': (one and two|two and one)", line)


def test_artifact_type_of_two_plugins_is_rejected_with_both_modules(tmp_path):
    one = STAGE.format(kind="x.y")
    done = with_plugin(tmp_path, "stages", one=one, two=one.replace("x.y", "x.z"))
    assert done.code == 2
    (line,) = done.errors
    assert "two artifact types are named Made, in " in line
    assert {"one_module", "two_module"} <= set(line.split())


def test_builtin_kind_cannot_be_taken_over(tmp_path):
    (line,) = with_plugin(tmp_path, "stages", thief=STAGE.format(kind="shapes.pool")).errors
    assert line == "error: two plugins have stage kind 'shapes.pool': core and thief"


LISTENER = """\
import vfm
@vfm.hookimpl
def vfm_event(event):
    with open("events.txt", "a") as file:
        file.write(event.type + "\\n")
    {then}
"""


def run_with_listener(tmp_path: Path, then: str) -> Outcome:
    (tmp_path / "r.yaml").write_text("stages:\n  - {kind: x.y, name: made}\n")
    listener = LISTENER.format(then=then)
    return with_plugin(tmp_path, "run", "r.yaml", stages=STAGE.format(kind="x.y"), listener=listener)


def test_listener_of_a_plugin_receives_every_event(tmp_path):
    assert run_with_listener(tmp_path, "pass").code == 0
    received = (tmp_path / "events.txt").read_text().split()
    assert received == ["run_started", "stage_started", "stage_finished", "run_finished"]


def test_listener_that_fails_is_removed_and_the_run_continues(tmp_path):
    done = run_with_listener(tmp_path, "1 / 0")
    assert done.code == 0
    assert "plugin 'listener': its listener failed and was removed: ZeroDivisionError" in done.out
    assert (tmp_path / "events.txt").read_text().split() == ["run_started"]
    assert (tmp_path / "store/runs/r/artifacts/made/artifact.json").is_file()
