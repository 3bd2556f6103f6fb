"""Shard tasks by each engine: the same files, workers that are lost, errors that name the shard, a clean end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)

import shard_tasks  # noqa: E402
from vfm import Runtime, UserError  # noqa: E402
from vfm_curation.engine import MAX_LOSSES, run_shards  # noqa: E402

LOCAL, PROCESSES = Runtime(), Runtime(workers=2)
RAY = Runtime(engine="ray", workers=2)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """One local cluster for all tests, as `run_shards` would start it for itself."""
    pytest.importorskip("ray")
    from vfm_curation.engine import _ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)
        with _ray(RAY) as ray:
            yield ray


@pytest.fixture(params=["local", "processes", "ray"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return {"local": LOCAL, "processes": PROCESSES, "ray": RAY}[request.param]


WITH_WORKERS = pytest.mark.parametrize("runtime", ["processes", "ray"], indirect=True)


def test_every_shard_is_done_once(runtime: Runtime, tmp_path: Path) -> None:
    assert sorted(run_shards(shard_tasks.square, tmp_path, range(20), runtime)) == [i**2 for i in range(20)]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {f"{i}.txt": str(i**2) for i in range(20)}


@WITH_WORKERS
def test_shard_of_a_killed_worker_is_tried_again(runtime: Runtime, tmp_path: Path) -> None:
    summaries = sorted(run_shards(shard_tasks.square_after_a_kill, tmp_path, range(8), runtime))
    assert summaries == [i**2 for i in range(8)]
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "3.txt").read_text() == "9"


@WITH_WORKERS
def test_shard_that_kills_each_worker_is_named_in_the_end(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shard .*\b3\b.*: the worker was killed 4 times"):
        list(run_shards(shard_tasks.deadly, tmp_path, range(8), runtime))
    assert len((tmp_path / "kills").read_text()) == MAX_LOSSES + 1


def test_error_names_the_shard(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^shard 3: pool\.tar: no such file$"):
        list(run_shards(shard_tasks.faulty, tmp_path, range(1, 4), runtime))
    with pytest.raises(RuntimeError, match=r"^shard 5: KeyError: 'oops'$"):
        list(run_shards(shard_tasks.faulty, tmp_path, range(4, 8), runtime))
    assert (tmp_path / "4.txt").read_text() == "16"


SCRIPT = """
import shard_tasks, sys
from pathlib import Path
from vfm import Runtime
from vfm_curation.engine import run_shards

if __name__ == "__main__":
    list(run_shards(shard_tasks.slow, Path(sys.argv[1]), range(8), Runtime(workers=2)))
"""


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL], ids=["ctrl_c", "kill"])
def test_workers_end_with_their_parent(tmp_path: Path, signal_: signal.Signals) -> None:
    """Ctrl-C reaches the whole group, a kill the parent alone."""
    script, folder = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": HERE}
    with subprocess.Popen(
        [sys.executable, script, folder], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as run:
        _await(lambda: sum(file.stat().st_size > 0 for file in folder.glob("*.begun")) >= 2)
        workers = [int(file.read_text()) for file in folder.glob("*.begun")]
        if signal_ == signal.SIGINT:
            os.killpg(run.pid, signal_)
        else:
            os.kill(run.pid, signal_)
        _, errors = run.communicate(timeout=15)
    _await(lambda: not any(map(_lives, workers)))
    assert errors.count("Traceback") == (signal_ == signal.SIGINT)  # the parent's own KeyboardInterrupt, no worker's


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _await(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
