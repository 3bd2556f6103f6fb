"""Shard tasks on each engine: the same files, killed workers, errors that name the shard, a clean end.

And a whole curation on each: the same kept set, also with the shards in another order and after a kill in pass 1.
"""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)

import shard_tasks  # noqa: E402
from vfm.data import read_subset  # noqa: E402
from vfm.plugin import UserError, connected_ray  # noqa: E402
from vfm_curation.balance.stages import MetaclipBalance  # noqa: E402
from vfm_curation.engine import MAX_LOSSES, NUM_CORES, _run_while_short, kept_workers, run_shards  # noqa: E402
from vfm_curation.match.stages import MatchTexts  # noqa: E402
from vfm_curation.metadata.stages import BuildMetadata  # noqa: E402
from vfm_curation.runtime import CurationRuntime  # noqa: E402
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file  # noqa: E402

LOCAL, PROCESSES = CurationRuntime(workers=1), CurationRuntime(workers=2)
RAY = CurationRuntime(engine="ray", workers=2)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Start one local cluster for all tests, as `run_shards` would."""
    if not find_spec("ray"):  # not imported here: `connected_ray` sets variables that ray reads when it is imported
        pytest.skip("needs ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)
        with connected_ray(RAY.ray_address, RAY.workers) as ray:
            yield ray


@pytest.fixture(params=["local", "processes", "ray"])
def runtime(request: pytest.FixtureRequest) -> CurationRuntime:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return {"local": LOCAL, "processes": PROCESSES, "ray": RAY}[request.param]


WITH_WORKERS = pytest.mark.parametrize("runtime", ["processes", "ray"], indirect=True)


def test_every_shard_is_done_once(runtime: CurationRuntime, tmp_path: Path) -> None:
    assert sorted(run_shards(shard_tasks.square, tmp_path, range(20), runtime)) == [i**2 for i in range(20)]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {f"{i}.txt": str(i**2) for i in range(20)}


@WITH_WORKERS
def test_shard_of_a_killed_worker_is_tried_again(runtime: CurationRuntime, tmp_path: Path) -> None:
    summaries = sorted(run_shards(shard_tasks.square_after_a_kill, tmp_path, range(8), runtime))
    assert summaries == [i**2 for i in range(8)]
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "3.txt").read_text() == "9"


def test_passes_of_a_stage_share_their_processes(tmp_path: Path) -> None:
    with kept_workers(PROCESSES):
        passes = [set(run_shards(shard_tasks.process_number, tmp_path, range(8), PROCESSES)) for _ in range(3)]
        assert sorted(run_shards(shard_tasks.square_after_a_kill, tmp_path, range(8), PROCESSES)) == [
            i**2 for i in range(8)
        ]
        after_a_kill = set(run_shards(shard_tasks.process_number, tmp_path, range(8), PROCESSES))
    assert len(set.union(*passes)) == PROCESSES.workers
    assert not after_a_kill & set.union(*passes)  # a broken pool is replaced as a whole
    without = [set(run_shards(shard_tasks.process_number, tmp_path, range(8), PROCESSES)) for _ in range(2)]
    assert not without[0] & without[1]


def test_processes_end_with_the_block_that_keeps_them(tmp_path: Path) -> None:
    with kept_workers(PROCESSES):
        pid = next(run_shards(shard_tasks.process_number, tmp_path, range(2), PROCESSES))
    _await(lambda: not Path(f"/proc/{pid}").exists())


@WITH_WORKERS
def test_shard_that_kills_every_worker_is_named(runtime: CurationRuntime, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shard .*\b3\b.*: the worker was killed 4 times"):
        list(run_shards(shard_tasks.deadly, tmp_path, range(8), runtime))
    assert len((tmp_path / "kills").read_text()) == MAX_LOSSES + 1


def test_shards_beside_one_that_kills_are_not_blamed(tmp_path: Path) -> None:
    summaries = []
    with pytest.raises(UserError, match=r"^shard 3: the worker was killed 4 times"):
        summaries.extend(run_shards(shard_tasks.deadly_after_a_while, tmp_path, range(2, 6), PROCESSES))
    assert len((tmp_path / "kills").read_text()) == MAX_LOSSES + 1


def test_error_names_the_shard(runtime: CurationRuntime, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^shard 3: pool\.tar: no such file$"):
        list(run_shards(shard_tasks.faulty, tmp_path, range(1, 4), runtime))
    with pytest.raises(RuntimeError, match=r"^shard 5: KeyError: 'oops'$"):
        list(run_shards(shard_tasks.faulty, tmp_path, range(4, 8), runtime))
    _await((tmp_path / "4.txt").exists)  # the worker of another shard may still be writing when the error is raised
    assert (tmp_path / "4.txt").read_text() == "16"


def test_a_full_disk_is_one_line_that_names_the_shard(runtime: CurationRuntime, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with pytest.raises(UserError, match=r"^shard 1: [^\n]*[Ff]ile too large[^\n]*$"):
        list(run_shards(shard_tasks.full_disk, tmp_path, range(1, 2), runtime))
    # numpy's words
    with pytest.raises(UserError, match=r"^shard 2: \d+ requested and \d+ written; check the space on the disk$"):
        list(run_shards(shard_tasks.full_disk, tmp_path, range(2, 3), runtime))
    assert list((tmp_path / "files").iterdir()) == []
    line = "^shard 3: no space left on the disk; finished shards are kept: free some space and run again$"
    with pytest.raises(UserError, match=line):
        list(run_shards(shard_tasks.no_space, tmp_path, [3], runtime))


def test_a_ray_that_does_not_come_up_is_one_line_at_once(tmp_path: Path) -> None:
    """In a process of its own: Ray reads its folder once, and a connection of other tests would be used.

    `auto` is RAY_ADDRESS; without that variable it would find any other cluster of the machine.
    """
    pytest.importorskip("ray")
    addresses = ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:1", "auto"]
    script = (
        "import sys\n"
        "from vfm.plugin import UserError, connected_ray\nfor address in [*sys.argv[1:], None]:\n    try:\n"
        "        with connected_ray(address):\n            pass\n"
        "    except UserError as error:\n        print(error)\n"
    )
    environment = {**os.environ, "RAY_TMPDIR": "/dev/null/ray", "RAY_ADDRESS": "127.0.0.1:1"}
    command = [sys.executable, "-c", script, *addresses]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    *lines, last = done.stdout.splitlines()
    assert len(lines) == len(addresses)
    for line, address in zip(lines, addresses, strict=True):
        assert line.startswith(f"no Ray cluster found at {address}: ")
    assert last == "Ray did not start: NotADirectoryError: [Errno 20] Not a directory: '/dev/null/ray'"


def test_a_full_disk_in_matching_ends_the_command_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    uids = [rng.bytes(16).hex() for _ in range(3000)]
    captions = [" ".join(f"w{word}" for word in rng.integers(0, 500, 20)) for _ in uids]
    pq.write_table(pa.table({"uid": uids, "caption": captions}), tmp_path / "captions.parquet")
    (tmp_path / "entries.txt").write_text("\n".join(f"w{word}" for word in range(500)))
    (tmp_path / "recipe.yaml").write_text(
        "stages:\n- {kind: data.pairs, name: pool, path: captions.parquet, images: false}\n"
        "- {kind: curation.metadata, name: entries, path: entries.txt}\n"
        "- {kind: curation.match, name: matches, pool: pool, metadata: entries}\n"
    )
    # -B: bytecode would be cut off at the limit too, in silence.
    command = [sys.executable, "-B", "-m", "vfm", "run", "recipe.yaml", "--quiet"]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=full)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: recipe.yaml:4: matches: shard 0: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1


def test_short_work_starts_no_processes_and_long_work_leaves_the_rest_to_them(tmp_path: Path) -> None:
    task = partial(shard_tasks.tenth_of_a_second, tmp_path)
    few, many = deque(range(5)), deque(range(1000))
    assert list(_run_while_short(task, few)) == list(range(5))
    assert next(_run_while_short(task, many)) == 0
    if NUM_CORES > 1:
        assert list(_run_while_short(task, many)) == [1]
        assert many[0] == 2


SCRIPT = """
import shard_tasks, signal, sys
from pathlib import Path
from vfm_curation.engine import run_shards
from vfm_curation import CurationRuntime

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    list(run_shards(shard_tasks.slow, Path(sys.argv[1]), range(8), CurationRuntime(workers=2)))
"""


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL], ids=["ctrl_c", "kill"])
def test_workers_end_with_their_parent(tmp_path: Path, signal_: signal.Signals) -> None:
    """Send Ctrl-C to the whole group, a kill only to the parent."""
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
        _, errors = run.communicate(timeout=1800)
    _await(lambda: not any(map(_lives, workers)))
    assert errors.count("Traceback") == (signal_ == signal.SIGINT)  # the parent's own KeyboardInterrupt, no worker's


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _await(condition: Any, seconds: float = 1800) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


WORDS = ["dog", "cat", "red car", "lighthouse", "okapi", "church", "glacier"]


def samples(number: int = 400) -> list[tuple[str, dict[str, list[str]]]]:
    rng = random.Random(0)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    drawn = [rng.choices(WORDS, weights, k=rng.randint(1, 2)) for _ in range(number)]
    # Uids of the first shard could take 16 bytes, those of the others cannot.
    uids = [f"{i:032x}" if i < 30 else f"uid{i}" for i in range(number)]
    return [
        (uid, {"en": [f"a {word} and {i}" for word in words]})
        for i, (uid, words) in enumerate(zip(uids, drawn, strict=True))
    ]


@pytest.fixture
def curate(make_pool: Any, run_stage: Any, tmp_path: Path) -> Any:
    """Return a function that curates a pool and returns the SHA-1 of the kept texts, and the matches."""
    entries = tmp_path / "entries.txt"
    entries.write_text("\n".join(WORDS))
    metadata = run_stage(BuildMetadata(name="entries", path=str(entries)))

    def run(name: str, runtime: CurationRuntime, pool: Any) -> tuple[str, Any, Any]:
        match = MatchTexts(name=f"matches-{name}", pool="p", metadata="m", runtime=runtime)
        matches = run_stage(match, p=pool, m=metadata)
        subset = run_stage(
            MetaclipBalance(name=f"curated-{name}", matches="x", target_size=150, runtime=runtime), x=matches
        )
        rows = read_subset(subset.path).filter(pc.field("kept")).to_pylist()
        kept = sorted((row["uid"], row["language"], row["text_index"]) for row in rows)
        assert 100 < len(kept) < 200
        return hashlib.sha1(repr(kept).encode()).hexdigest(), matches, subset

    return run


def files_of(*artifacts: Any) -> dict[str, bytes]:
    files = [file for one in artifacts for file in one.path.rglob("*")]
    chosen = [file for file in files if file.parent.name in ("shards", "subset") or file.suffix in (".npy", ".npz")]
    return {f"{file.parent.name}/{file.name}".partition("-")[0] + file.name: file.read_bytes() for file in chosen}


def test_kept_set_is_the_same_by_every_engine_and_after_a_kill(
    make_pool: Any, curate: Any, ray_cluster: Any, tmp_path: Path
) -> None:
    pool = make_pool("pool", samples(), shard_size=30)
    kept, *made = curate("local", LOCAL, pool)
    expected = files_of(*made)
    assert len(expected) == 14 + 2 + 14
    assert {pq.read_schema(file).field("uid").type for file in made[1].path.glob("subset/*")} == {pa.string()}
    for name, runtime in (("processes", PROCESSES), ("ray", RAY)):
        again, *made = curate(name, runtime, pool)
        assert again == kept
        assert files_of(*made) == expected

    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    store, work = tmp_path / "store", tmp_path / "work/matches-killed"
    work.mkdir()
    command = [sys.executable, script, store / "matches-killed", work, pool.path, store / "entries"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    finished = {file.name: file.stat().st_mtime_ns for file in (work / "shards").iterdir()}
    assert 3 <= len(finished) < 14
    again, matches, subset = curate("killed", PROCESSES, pool)
    assert again == kept
    assert files_of(matches, subset) == expected
    times = {file.name: file.stat().st_mtime_ns for file in (matches.path / "shards").iterdir()}
    assert times | finished == times  # finished shards are not repeated

    other, *_ = curate("order", PROCESSES, make_pool("other", samples()[::-1], shard_size=47))
    assert other == kept


KILLED = """
import os, signal, sys
from pathlib import Path
from vfm.plugin import Context
from vfm_curation import MatchTexts

def kill(event):
    if event.type == "progress" and event.data["done"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    directory, work, pool, metadata = map(Path, sys.argv[1:])
    directory.mkdir()
    stage = MatchTexts(name="matches-killed", pool="p", metadata="m", runtime={"workers": 2})
    stage.run(Context("matches-killed", directory, work, {"p": pool, "m": metadata}, kill))
"""


def test_a_file_made_from_something_else_is_not_finished(tmp_path: Path) -> None:
    file = tmp_path / "a/0.parquet"
    file.parent.mkdir()
    write_shard_file(file, pa.table({"x": [1]}), made_from("shard", 1), {"num_texts": 3})
    assert finished_summary(file, made_from("shard", 1)) == {"num_texts": 3}
    assert finished_summary(file, made_from("shard", 2)) is None
    assert finished_summary(tmp_path / "a/1.parquet", made_from("shard", 1)) is None


@pytest.mark.parametrize("fault", ["cut", "empty", "footer"])
def test_a_file_that_cannot_be_read_is_made_again(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "a/0.parquet"
    file.parent.mkdir()
    write_shard_file(file, pa.table({"x": [1]}), made_from("shard", 1), {"num_texts": 3})
    whole = file.read_bytes()
    broken = {"cut": whole[:-9], "empty": b"", "footer": whole[:-108] + b"\xff" * 100 + whole[-8:]}
    file.write_bytes(broken[fault])
    assert finished_summary(file, made_from("shard", 1)) is None
