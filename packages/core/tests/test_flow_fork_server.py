"""A forked command of `vfm` behaves as one that Python starts anew."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vfm.flow.execution.fork_server import ForkedProcess, ForkServers
from vfm.flow.execution.subprocesses import start_subprocess

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone has handles of processes")


@pytest.fixture(scope="module")
def servers() -> Iterator[ForkServers]:
    with ForkServers() as servers:
        yield servers


def fork(
    servers: ForkServers, words: list[str], log: Path, environment: Mapping[str, str] = os.environ
) -> ForkedProcess:
    with log.open("wb") as errors:
        return servers.start(
            words, environment, ["vfm.cli", "no.such_module"], errors=errors.fileno(), lock=errors.fileno()
        )


@pytest.mark.parametrize("words", ["--version", "plan no_such_recipe", "stages shapes.pool", "--no-such-option"])
def test_output_errors_and_exit_code_are_equal(servers: ForkServers, words: str, tmp_path: Path) -> None:
    with fork(servers, words.split(), tmp_path / "forked") as forked:
        output = forked.stdout.read()
    with (tmp_path / "started").open("wb") as errors:
        command = [sys.executable, "-m", "vfm", *words.split()]
        with start_subprocess(command, os.environ, errors=errors.fileno(), lock=errors.fileno()) as started:
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


def test_a_server_that_was_killed_is_named(tmp_path: Path) -> None:
    with ForkServers() as servers:
        with fork(servers, ["--version"], tmp_path / "log") as process:
            assert process.wait() == 0
        ((server, _),) = servers._servers.values()
        server.kill()
        server.wait()
        with pytest.raises((RuntimeError, BrokenPipeError)):
            fork(servers, ["--version"], tmp_path / "log")


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
