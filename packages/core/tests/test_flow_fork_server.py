"""A forked command of `vfm` behaves as one that Python starts anew."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vfm.flow.execution.fork_server import ForkedProcess, ForkServers, can_fork
from vfm.flow.execution.subprocesses import Process, start_subprocess

pytestmark = pytest.mark.skipif(not can_fork(), reason="Linux alone has handles of processes")


@pytest.fixture(scope="module")
def servers() -> Iterator[ForkServers]:
    with ForkServers() as servers:
        yield servers


def fork(
    servers: ForkServers,
    words: list[str],
    log: Path,
    environment: Mapping[str, str] = os.environ,
    modules: Sequence[str] = ("vfm.cli.commands", "no.such_module"),
) -> AbstractContextManager[Process]:
    with log.open("wb") as errors:
        return servers.start(words, environment, modules, errors=errors.fileno(), lock=errors.fileno())


def start(words: list[str], log: Path, environment: Mapping[str, str] = os.environ) -> subprocess.Popen[str]:
    with log.open("wb") as errors:
        command = [sys.executable, "-m", "vfm", *words]
        return start_subprocess(command, environment, errors=errors.fileno(), lock=errors.fileno())


def write_plugin(folder: Path, name: str, code: str) -> Mapping[str, str]:
    """Write a plugin outside of site-packages that runs code when it is loaded, and return variables to find it."""
    (folder / f"{name}.py").write_text(code)
    (folder / f"{name}-1.dist-info").mkdir()
    (folder / f"{name}-1.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (folder / f"{name}-1.dist-info/entry_points.txt").write_text(f"[vfm]\n{name} = {name}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize("words", ["--version", "plan no_such_recipe", "stages shapes.pool", "--no-such-option"])
def test_output_errors_and_exit_code_are_equal(servers: ForkServers, words: str, tmp_path: Path) -> None:
    with fork(servers, words.split(), tmp_path / "forked") as forked:
        output = forked.stdout.read()
    with start(words.split(), tmp_path / "started") as started:
        assert started.stdout
        assert output == started.stdout.read()
    assert forked.returncode == started.wait()
    assert (tmp_path / "forked").read_text() == (tmp_path / "started").read_text()


def test_a_forked_process_has_its_own_environment(servers: ForkServers, tmp_path: Path) -> None:
    command = "clip_benchmark eval --model $MODEL --pretrained openai --dataset cifar10 --dataset_root ."
    for model in ("ViT-B-32", "ViT-L-14"):
        recipe = tmp_path / f"{model}.yaml"
        words = ["from", "clip_benchmark", "--output", str(recipe), "--", *command.split()]
        with fork(servers, words, tmp_path / "log", {**os.environ, "MODEL": model}):
            pass
        assert f"source: {model}" in recipe.read_text()


@pytest.mark.parametrize("signal_name", ["terminate", "kill"])
def test_a_signal_ends_it(servers: ForkServers, signal_name: str, tmp_path: Path) -> None:
    pipe = tmp_path / "recipe.yaml"
    os.mkfifo(pipe)  # reading it waits for a writer
    with fork(servers, ["plan", str(pipe)], tmp_path / "log") as process:
        getattr(process, signal_name)()
        assert process.wait() != 0
    getattr(process, signal_name)()  # of an ended process: nothing happens


def test_the_lock_is_held_until_the_process_ends_and_no_longer(servers: ForkServers, tmp_path: Path) -> None:
    pipe, read, write = tmp_path / "recipe.yaml", *os.pipe()
    os.mkfifo(pipe)
    with (tmp_path / "log").open("wb") as errors:
        process = servers.start(["plan", str(pipe)], os.environ, [], errors=errors.fileno(), lock=write)
    os.close(write)
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):  # another process has the write end
        os.read(read, 1)
    process.kill()
    process.wait()
    os.set_blocking(read, True)
    assert os.read(read, 1) == b""  # neither the server nor the process has it
    os.close(read)
    with process:
        pass


@pytest.mark.parametrize(
    "code",
    [
        "sys.exit(300)",
        "sys.exit(-1)",
        "sys.exit('no licence')",
        "print('\\udc80', file=sys.stderr), sys.exit(0)",
        "sys.stderr.write('last words\\n'), os.kill(os.getpid(), 9)",
    ],
)
def test_a_plugin_ends_it_as_it_ends_python(code: str, tmp_path: Path) -> None:
    environment = write_plugin(tmp_path, "ending", f"import os, sys\n{code}\n")
    with ForkServers() as servers, fork(servers, ["stages"], tmp_path / "forked", environment) as forked:
        pass
    with start(["stages"], tmp_path / "started", environment) as started:
        pass
    assert isinstance(forked, ForkedProcess)
    assert forked.returncode == started.returncode
    assert (tmp_path / "forked").read_text() == (tmp_path / "started").read_text()


def test_a_command_that_fails_while_a_module_loads_has_its_exit_code(tmp_path: Path) -> None:
    code = "import subprocess, time\nchild = subprocess.Popen(['false'])\ntime.sleep(0.5)\nCODE = child.wait()\n"
    environment = write_plugin(tmp_path, "probing", code + "print('code', CODE)")
    with ForkServers() as servers:
        with fork(servers, ["--version"], tmp_path / "log", environment):
            pass
        with fork(servers, ["--version"], tmp_path / "log", environment, ["probing"]):
            pass
        (tmp_path / "reading.py").write_text("import probing, sys\nsys.exit(10 + probing.CODE)\n")
        (tmp_path / "probing-1.dist-info/entry_points.txt").write_text("[vfm]\nreading = reading\n")
        with fork(servers, ["stages"], tmp_path / "log", environment) as process:
            pass
    assert process.returncode == 11


@pytest.mark.parametrize("value", ["x" * 100_000, "é" * 30_000], ids=["ascii", "escaped"])
def test_a_large_environment_is_passed_on(value: str, tmp_path: Path) -> None:
    code = "import os, sys\nsys.exit(len(os.environ['LARGE'] + os.environ['LARGER']) // 2000)\n"
    environment = {**write_plugin(tmp_path, "measuring", code), "LARGE": value, "LARGER": value}
    with ForkServers() as servers, fork(servers, ["stages"], tmp_path / "log", environment) as process:
        pass
    assert isinstance(process, ForkedProcess)
    assert process.returncode == len(value) // 1000


def test_a_killed_server_is_replaced(tmp_path: Path) -> None:
    with ForkServers() as servers:
        for count in range(3):
            with fork(servers, ["--version"], tmp_path / "log") as process:
                assert process.wait() == 0
            assert isinstance(process, ForkedProcess) == (count != 1)  # 1: Python starts it
            if count == 0:
                ((server, _),) = servers._servers.values()
                server.kill()
                server.wait()


def test_a_module_that_ends_its_process_ends_no_step(tmp_path: Path) -> None:
    (tmp_path / "fatal.py").write_text("import os\nos._exit(0)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with ForkServers() as servers, fork(servers, ["--version"], tmp_path / "log", environment, ["fatal"]) as process:
        assert process.wait() == 0


def test_servers_end_though_another_process_has_a_copy_of_their_connection(tmp_path: Path) -> None:
    with ForkServers() as servers:
        with fork(servers, ["--version"], tmp_path / "log"):
            ((server, connection),) = servers._servers.values()
        copy = connection.dup()
    assert server.returncode == 0
    copy.close()


def test_systems_without_handles_of_processes_fork_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, f"no handle of {pid}")

    monkeypatch.setattr(os, "pidfd_open", refuse)  # as kernels before 5.3 and some sandboxes answer
    assert not can_fork()


def test_processor_time_of_forked_processes_is_counted(tmp_path: Path) -> None:
    script = (
        "import os, resource, sys, pathlib\n"
        "from vfm.flow.execution.fork_server import ForkServers\n"
        "with ForkServers() as servers, open(sys.argv[1], 'wb') as log:\n"
        "    for _ in range(2):\n"
        "        with servers.start(['stages'], os.environ, [], errors=log.fileno(), lock=log.fileno()) as process:\n"
        "            process.stdout.read()\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) > 0.1


def test_the_next_process_has_the_modules_that_a_step_imported_late(tmp_path: Path) -> None:
    code = "import sys; print('early', 'vfm.statistics' in sys.modules); import vfm.statistics"
    variables = write_plugin(tmp_path, "early", code)
    answers = []
    with ForkServers() as servers:
        for _ in range(2):
            with fork(servers, ["stages", "shapes.pool"], tmp_path / "log", variables) as forked:
                answers.append("early True" in forked.stdout.read())
    assert answers == [False, True]
