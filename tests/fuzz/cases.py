"""One case: a file of a target is damaged, the real command runs in a forked process, and its outcome is classified."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fuzz.mutations import Damage, damage
from fuzz.oracle import lost_silently
from fuzz.targets import Target, vfm

ALLOWED = ("good", "counted", "refused")
FORBIDDEN = ("traceback", "nameless", "hang", "memory", "silent")
SECONDS, MEMORY = 30.0, 2 << 30
WAITING = 10  # times as long by the clock: a process that waits for ever uses no processor
FIRST = 600.0  # seconds for the good input of a target, which pays for the imports
RESULT, OUT, ERR, MODULES = "result.json", "out.txt", "err.txt", "modules.txt"


@dataclass(frozen=True)
class Outcome:
    """What became of a case: one of ALLOWED or FORBIDDEN, and the line or the reason that shows it."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or why it was killed."""

    code: int
    killed: str = ""


def forked(work: Callable[[], int], logs: Path, seconds: float = SECONDS, memory: int = MEMORY) -> Ended:
    """Run a function in a forked process, its output in files, and kill it above a time or a resident size."""
    begun, pid = time.monotonic(), os.fork()
    if pid == 0:
        _in_child(work, logs, memory)
    killed = ""
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if not killed and (killed := _excess(pid, begun, seconds, memory)):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.002)
    if used.ru_maxrss << 10 > memory:
        killed = killed or "memory"
    return Ended(os.waitstatus_to_exitcode(status), killed)


def _excess(pid: int, begun: float, seconds: float, memory: int) -> str:
    """Return the limit that a process exceeds; that of time is of the processor's, as others may use it too."""
    with suppress(OSError, ValueError, IndexError):
        if int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() > memory:
            return "memory"
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        if (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") > seconds:
            return "hang"
    return "hang" if time.monotonic() - begun > WAITING * seconds else ""


def _in_child(work: Callable[[], int], logs: Path, memory: int) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        for name, number in ((OUT, 1), (ERR, 2)):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 4 * memory,) * 2)  # faster than the watch: spare the machine
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Fuzz:
    """The targets' good inputs, made once, and cases on copies of them; everything happens in one folder."""

    def __init__(self, folder: Path, targets: list[Target], seed: int) -> None:
        self.folder, self.targets, self.seed = folder, targets, seed
        self.here = folder / "here"
        self.expected: dict[str, dict] = {}

    def run(self, number: int) -> tuple[Target, str, Damage, Outcome]:
        """Return target, damaged file, damage and outcome of the case of a number."""
        rng = random.Random(f"{self.seed}/{number}")
        target = self.targets[number % len(self.targets)]
        if target.name not in self.expected:
            self.expected[target.name] = self._prepare(target)
        self._restore(target)
        files = sorted(
            path for path in self.here.glob(rng.choice(target.files)) if path.is_file() and path.stat().st_size
        )
        file = rng.choice(files)
        original = file.read_bytes()
        done = damage(original, rng)
        file.unlink()
        file.write_bytes(done.data)
        ended = self._command(target, rng.choice(target.commands))
        name = str(file.relative_to(self.here))
        return target, name, done, self._outcome(target, file, done, original, ended)

    def _prepare(self, target: Target) -> dict:
        """Make a target's good input, run its commands on it, and import here what they imported."""
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True)
        self._checked(target, forked(lambda: self._make(target), self.folder, FIRST))
        shutil.copytree(self.here, self.folder / target.name, symlinks=True)
        expected: dict = {}
        for words in target.commands:
            self._restore(target)
            self._checked(target, self._command(target, words, FIRST))
            if target.read:
                expected = json.loads((self.folder / RESULT).read_text())
            for name in (self.folder / MODULES).read_text().split():
                with suppress(ImportError):
                    importlib.import_module(name)
        return expected

    def _make(self, target: Target) -> int:
        os.chdir(self.here)
        target.make()
        return 0

    def _checked(self, target: Target, ended: Ended) -> None:
        if ended.code or ended.killed:
            raise RuntimeError(
                f"{target.name}: {ended}\n{(self.folder / OUT).read_text()}{(self.folder / ERR).read_text()}"
            )

    def _restore(self, target: Target) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.folder / target.name, self.here, symlinks=True)

    def _command(self, target: Target, words: tuple[str, ...], seconds: float = SECONDS) -> Ended:
        """Run the command, and read what it published."""

        def work() -> int:
            os.chdir(self.here)
            before = set(sys.modules)
            vfm(*words)
            if target.read:
                (self.folder / RESULT).write_text(json.dumps(target.read()))
            (self.folder / MODULES).write_text("\n".join(sorted(set(sys.modules) - before)))
            return 0

        return forked(work, self.folder, seconds)

    def _outcome(self, target: Target, file: Path, done: Damage, original: bytes, ended: Ended) -> Outcome:
        said = (self.folder / ERR).read_text(errors="replace")
        if ended.killed:
            return Outcome(ended.killed, said[-300:])
        if ended.code not in (0, 2) or "Traceback (most recent call last)" in said:
            return Outcome("traceback", f"exit code {ended.code}: {said[-3000:]}")
        if ended.code == 2:
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            named = any(name in line for line in lines for name in (*target.names, *self._names(file)))
            return Outcome("refused" if named else "nameless", " | ".join(lines) or said[-300:])
        if not target.read:
            return Outcome("good")
        before, after = self.expected[target.name], json.loads((self.folder / RESULT).read_text())
        if target.counts and (wrong := lost_silently(before, after, done, original, file.name)):
            return Outcome("silent", wrong)
        counted = any(after.get(kind, 0) > before.get(kind, 0) for kind in ("bad", "dropped"))
        return Outcome("counted" if counted else "good")

    def _names(self, file: Path) -> list[str]:
        """Return what names a file: its own name, or the artifact's folder."""
        folder = file.parent.relative_to(self.here).name
        return [file.name, *([folder] if folder else [])]
