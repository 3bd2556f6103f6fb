"""Kill -9 at any moment, then run again, two at once: the result is bit for bit that of a run that nothing befell."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from outside import ROOT, call, checked
from vfm.data import write_tar

RECIPES = Path(__file__).parent / "recipes"
HAS_RED = b'{"has": ["red"]}'
NUM_KILLS = int(os.environ.get("VFM_NUM_KILLS", "4"))
VFM = (sys.executable, "-m", "vfm")

# What may differ between two runs that did the same: when, how long, how fast, how much memory; and nothing else.
TIMES = {"finished", "seconds", "sha256"}
PANELS_OF_TIMES = "*-seconds.json"
SPEED = {"train/samples_per_second", "train/data_wait_pct", "sys/mem_gib"}


def run(folder: Path, store: str, recipe: Path = RECIPES / "every_stage.yaml") -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*VFM, "run", str(recipe), "--store", store, "--quiet"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out[-2000:] + err[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with `outside/`: tars (one sample broken), class folders, choices, and three models."""
    folder = tmp_path_factory.mktemp("kill")
    finish(run(folder, "made", RECIPES / "from_outside.yaml"))
    made, outside = folder / "made/runs/from_outside/artifacts", folder / "outside"
    outside.mkdir()
    for name, source in {"photos": "photos", "clip": "openai", "vision": "encoder", "generator": "stable"}.items():
        shutil.copytree((made / source).resolve(), outside / name)
    with tarfile.open(outside / "photos/00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = [name.removesuffix(".jpg") for name in members if name.endswith(".jpg")]
    _class_folders(outside / "folders", members, keys)
    write_tar(outside / "marked.tar", [(key, {"jpg": members[f"{key}.jpg"], "json": HAS_RED}) for key in keys[:8]])
    statements, truths = ["a red circle", "a blue star"], [[0, -1], [-1, 0]] * 4
    lines = [
        {"images": [f"folders/{'ab'[index % 2]}/{key}.jpg"], "statements": statements, "truth": truth}
        for index, (key, truth) in enumerate(zip(keys, truths, strict=False))
    ]
    _add_vae(outside / "generator")
    (outside / "choices.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    _break_a_sample(outside / "photos/00000.tar", keys[3])
    _crawl(outside)
    return folder


def _add_vae(folder: Path) -> None:
    """The generator now denoises latents, of which there are as many channels as of pixels."""
    import diffusers

    diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")


def _crawl(folder: Path) -> None:
    """What a crawl says of two pages, and what came of a download."""
    for number in range(2):
        links = [{"path": "IMG@/src", "url": f"{number}.jpg", "alt": "a red circle"}]
        envelope = {
            "WARC-Header-Metadata": {"WARC-Target-URI": "https://example.org/"},
            "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": links}}},
        }
        said = json.dumps({"Envelope": envelope})
        head = f"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Type: application/json\r\nContent-Length: {len(said)}"
        with (folder / "crawl.warc.wat").open("a", newline="") as file:
            file.write(f"{head}\r\n\r\n{said}\r\n\r\n")
    url, caption = ["https://example.org/0.jpg"], ["a red circle"]
    outcome = {"url": url, "caption": caption, "status": ["failed_to_download"], "error_message": ["timed out"]}
    pq.write_table(pa.table(outcome), folder / "downloads.parquet")


def _class_folders(folder: Path, members: dict[str, bytes], keys: list[str]) -> None:
    for index, key in enumerate(keys):
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{key}.jpg").write_bytes(members[f"{key}.jpg"])


def _break_a_sample(tar: Path, key: str) -> None:
    """Spoils an image in a tar, so that bad samples and their counts take part."""
    with tarfile.open(tar) as opened:
        start = opened.getmember(f"{key}.jpg").offset_data
    with tar.open("r+b") as file:
        file.seek(start)
        file.write(b"no picture")


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> dict[str, Any]:
    """What a run that nothing befell leaves."""
    finish(run(folder, "unbroken"))
    return contents(folder / "unbroken")


def contents(store: Path) -> dict[str, Any]:
    """Every file of every artifact, byte for byte; all but times and speed."""
    files = sorted(path for path in store.glob("*-*/**/*") if path.is_file() and not path.match(PANELS_OF_TIMES))
    return {
        _name(path.relative_to(store)): _manifest(path) if path.name == "manifest.json" else path.read_bytes()
        for path in files
    }


def _name(path: Path) -> str:
    """Kept features are called by their model and, behind it, by the times of the pictures' files."""
    return str(path.with_name(path.name.rpartition("-")[0]) if path.parent.name == "features" else path)


def _manifest(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    record["numbers"] = {name: value for name, value in record["numbers"].items() if name not in SPEED}
    record["files"] = {name: facts for name, facts in record["files"].items() if not Path(name).match(PANELS_OF_TIMES)}
    return {key: value for key, value in record.items() if key not in TIMES}


def num_events(store: Path) -> int:
    """How much has happened on a store, which does not hang on how busy the machine is."""
    file = store / "runs/every_stage/events.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_at_random(folder: Path, count: int, chance: random.Random) -> Iterator[str]:
    """Kills runs of a store at random moments: after a random number of events, and a little later.

    Gives a store when a run on it ended before its kill; the next kills fall on a new one. The last is given as it is.
    """
    most, number = num_events(folder / "unbroken") // 3, 0
    while count:
        store = folder / f"killed-{number}"
        wanted, delay = num_events(store) + chance.randrange(most), chance.uniform(0, 0.5)
        process = run(folder, store.name)
        while process.poll() is None and num_events(store) < wanted:
            time.sleep(0.01)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            count -= 1
            continue
        finish(process)
        yield store.name
        number += 1
    yield f"killed-{number}"


def finish_together(folder: Path, store: str) -> None:
    """Two runs at once on one store: they wait for one another's stages, and both end well."""
    both = [run(folder, store), run(folder, store)]
    for process in both:
        finish(process)


def test_every_kind_of_stage_is_in_the_recipe() -> None:
    listed = checked(call(*VFM, "stages", cwd=ROOT)).stdout
    kinds = {line.split()[0] for line in listed.splitlines() if line[1:2].strip()} - {"kind"}
    assert {"shapes.pool", "data.pairs", "clip.train", "eval.knn"} <= kinds
    used = {stage["kind"] for stage in yaml.safe_load((RECIPES / "every_stage.yaml").read_text())["stages"]}
    assert kinds == used


def test_runs_killed_at_random_moments_and_finished_by_two_at_once_are_bit_identical(
    folder: Path, unbroken: dict[str, Any]
) -> None:
    seed = int(os.environ.get("VFM_KILL_SEED", time.time()))
    print(f"VFM_KILL_SEED={seed}")
    for store in kill_at_random(folder, NUM_KILLS, random.Random(seed)):
        finish_together(folder, store)
        found = contents(folder / store)
        assert sorted(found) == sorted(unbroken)
        assert [name for name, content in unbroken.items() if found[name] != content] == []
        assert [path.name for path in (folder / store).iterdir() if path.suffix in {".part", ".work"}] == []
        assert (folder / store / "runs/every_stage/report.html").is_file()
        shutil.rmtree(folder / store)


TWO_PROCESSES = """\
stages:
  - {kind: shapes.pool, name: pool, num_samples: 120, world: {image_size: 32}}
  - kind: clip.train
    name: clip
    model: ViT-Pico-8-32
    data: pool
    steps: 30
    global_batch_size: 32
    checkpoint: {every_steps: 3}
    runtime: {processes: 2}
"""


@pytest.mark.skipif(NUM_KILLS < 10, reason="long; make kill-test runs it")
def test_killed_parent_of_two_training_processes_leaves_no_orphans_and_the_next_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TWO_PROCESSES)
    finish(run(tmp_path, "unbroken", tmp_path / "r.yaml"))
    process = run(tmp_path, "killed", tmp_path / "r.yaml")
    while process.poll() is None and not list(tmp_path.glob("killed/.clip.train-*.work/step-*6")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finish(run(tmp_path, "killed", tmp_path / "r.yaml"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")
    assert str(tmp_path) not in checked(call("ps", "-eo", "args", cwd=tmp_path)).stdout
