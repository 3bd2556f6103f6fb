"""`vfm run --jobs ray`: artifacts as in one process, one log, signals, GPUs, lost processes, nodes without a store."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import toy_plugin
from cli_world import install, run_here, toys
from test_cli_jobs import HERE, events, has_begun, wait_for
from test_flow_parallel import training
from vfm.base import UserError
from vfm.flow.execution.ray_jobs import RayNodes, RayProcess
from vfm.flow.plan.plan import Step
from vfm.flow.plan.store import STEP_FILE, Slot
from vfm.interfaces import Event

__all__ = ["toys"]
BRANCHES = """\
stages:
  - {kind: toy.draw, name: a, count: 24}
  - {kind: toy.add, name: first, inputs: [a]}
  - {kind: toy.fail, name: f, number: a, how: user}
"""
HELD = """\
stages:
  - {kind: toy.draw, name: a}
  - {kind: hold.count, name: first, number: a}
"""
needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="needs ray")  # not imported: see `connected_ray`


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of a single node that believes in two GPUs, and has the plugins of these tests."""
    site = tmp_path_factory.mktemp("site")
    for name, module in (("toys", "toy_plugin"), ("holding", "holding_plugin")):
        install(site, name, module)
        shutil.copy(HERE / f"{module}.py", site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default, with which steps starve on a busy machine
        import ray

        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield ray
        ray.shutdown()


def start(jobs: str = "ray") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vfm", "run", "r.yaml", "--jobs", jobs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@needs_ray
def test_steps_on_ray_make_the_artifacts_of_one_process_with_one_log_and_report_failures(
    cluster: Any, toys: Path
) -> None:
    Path("r.yaml").write_text(BRANCHES)
    out, err = (process := start()).communicate(timeout=600)
    assert (process.returncode, err) == (2, "error: r.yaml:4: f: the numbers do not add up\n"), out
    host = os.uname().nodename
    assert all(out.count(f"  {name} runs on {host}\n") == 1 for name in ("a", "first"))
    assert [line for line in out.splitlines() if not re.match(r"(✓ |✗ |  )?(a|first|f) |not run|[0-9]+ s ", line)] == []
    Path("r.yaml").write_text(BRANCHES.replace("how: user", "how: bug"))
    assert run_here("run", "r.yaml", "--store", "other", "--until", "first").code == 0
    for name in ("a", "first"):
        artifact = Path("other/runs/r/artifacts", name).resolve().name
        two, one = (Path(store, artifact, "artifact.json").read_bytes() for store in ("store", "other"))
        assert two == one
    manifest = json.loads(next(Path("store").glob("toy.add-*/manifest.json")).read_text())
    assert manifest["runtime"]["threads"] == 1


@needs_ray
def test_a_signal_lets_steps_on_ray_save_and_the_next_run_goes_on(cluster: Any, toys: Path) -> None:
    Path("r.yaml").write_text(HELD)
    Path("hold").touch()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        known = len(events())
        process = start()
        wait_for(lambda known=known: has_begun("first", after=known))  # type: ignore[misc]
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, out + err
        assert len(err.strip().splitlines()) == 1, err
    Path("hold").unlink()
    out, err = (process := start("1")).communicate(timeout=600)
    assert process.returncode == 0, out + err
    begun = [event["status"] for event in events() if event["type"] == "stage_started" and event["stage"] == "first"]
    assert begun == ["new", "resume", "resume"]
    assert toy_plugin.Numbers.load(Path("store/runs/r/artifacts/first")).values[0] >= 2


class Recorder:
    """Receives events."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, event: Event) -> None:
        self.messages.append(str(event.data["message"]))


def prepared(name: str, folder: Path, **changes: Any) -> Step:
    """A training on a device with a work folder."""
    slot = Slot(folder, f"{name}-00000000")
    slot.begin()
    (slot.work / STEP_FILE).touch()
    return replace(training(name, **changes), slot=slot)


@dataclass
class Cluster:
    """Nodes of a cluster as Ray lists them."""

    resources: list[dict[str, float]]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": resources} for resources in self.resources]


def begin(nodes: RayNodes, step: Step, send: Any, script: str) -> RayProcess:
    return nodes.start(step, send, ["-c", script, step.stage.name], {"OMP_NUM_THREADS": "1"}, errors=2, lock=2)


@needs_ray
def test_each_training_has_a_gpu_and_a_third_one_waits(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfm.flow.execution.ray_jobs.ROOM_SECONDS", 1.0)
    script = "import os, time, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n"
    script += f"while os.path.exists({str(tmp_path / 'hold')!r}): time.sleep(0.1)"
    (tmp_path / "hold").touch()
    nodes, send = RayNodes(cluster), Recorder()
    first, second, third = (prepared(name, tmp_path, runtime={"device": "auto"}) for name in "abc")
    with (
        ThreadPoolExecutor() as pool,
        begin(nodes, first, send, script) as one,
        begin(nodes, second, send, script) as two,
    ):
        assert {next(one.stdout), next(two.stdout)} == {"0\n", "1\n"}
        send.messages.clear()
        waiting = pool.submit(begin, nodes, third, send, script)
        wait_for(lambda: bool(send.messages))
        assert send.messages == ["waits for a node with 1 free CPUs and 1 free GPUs"]
        (tmp_path / "hold").unlink()
        assert [one.wait(), two.wait()] == [0, 0]
    with waiting.result() as process:
        assert process.wait() == 0


def test_a_step_asks_for_no_more_cpus_than_a_node_has() -> None:
    nodes = RayNodes(Cluster([{"CPU": 2.0}, {"CPU": 8.0, "GPU": 4.0}]))
    assert nodes.size_of(training("a", runtime={"device": "cpu", "threads": 4})) == (4, 0)
    assert nodes.size_of(training("b", runtime={"device": "auto", "threads": 16, "processes": 2})) == (8, 2)
    assert nodes.size_of(training("c", runtime={"device": "cuda", "processes": 8})) == (8, 8)  # a node may join
    alone = RayNodes(Cluster([{"CPU": 2.0}]))
    assert alone.size_of(training("d", runtime={"device": "auto", "workers": 2})) == (2, 0)
    assert alone.size_of(training("e", runtime={"device": "cuda"})) == (1, 1)


@needs_ray
def test_a_killed_node_process_and_a_node_without_the_store_are_one_line(cluster: Any, tmp_path: Path) -> None:
    nodes, send = RayNodes(cluster), Recorder()
    script = "import os; print(os.getppid(), flush=True); input()"
    step = prepared("a", tmp_path)
    with begin(nodes, step, send, script) as process:
        os.kill(int(next(process.stdout)), signal.SIGKILL)
        with pytest.raises(UserError, match=r"^a: Ray has lost its process, and the next run resumes from .*: [^\n]+$"):
            next(process.stdout)
        assert process.wait() == -signal.SIGKILL
    host = os.uname().nodename
    with pytest.raises(UserError, match=rf"^b: node {host} does not see \S+{STEP_FILE}; all nodes of a Ray cluster"):
        begin(nodes, training("b"), send, script)


def test_without_ray_the_run_is_refused_in_one_line(toys: Path) -> None:
    script = "import sys\nsys.modules['ray'] = None\nfrom vfm.cli import main\nsys.argv[0] = 'vfm'\nmain()"
    command = [sys.executable, "-c", script, "run", str(toys / "r.yaml"), "--jobs"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(toys.parent / "site"), str(HERE)])}
    done = subprocess.run([*command, "ray"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: Ray is not installed: pip install 'ray>=2.50,<3'\n")
