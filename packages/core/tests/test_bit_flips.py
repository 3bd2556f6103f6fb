"""One flipped bit anywhere in a store is refused, or what is read is as it was; `make flip-test` runs 1,000.

Each kind of file is read as the commands read it: artifacts when a stage loads them, checkpoints when a training
resumes, and what only saves time (offsets, features, fingerprints) where it is used.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_world import run_here
from eval_world import NAMES, labeled, run_in, tiny_clip
from train_toy import Samples, plan, train
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.eval import encode_dataset, open_writer, read_embeddings
from vfm.eval.encode.embeddings import SUFFIXES
from vfm.eval.encode.encoders import load_encoder
from vfm.flow.execution.execution import read_step, write_step
from vfm.flow.execution.run import run_plan
from vfm.flow.listeners.listeners import JsonLinesListener
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.records.runs import EVENTS_FILE, RUN_FILE
from vfm.flow.records.verification import damaged_records
from vfm.interfaces import MANIFEST_FILE, Artifact, Event, load_plugins, stage_types
from vfm.plugin import ReadSettings
from vfm.report import summary_of_run
from vfm.report.results import reports
from vfm.storage import fingerprints
from vfm.train.checkpoint.checkpoint import Checkpoints
from vfm.train.parallel.dist import DistributedWorld

REFUSED, SAME = "refused by name", "as it was"
NUM_FLIPS = int(os.environ.get("VFM_NUM_FLIPS", "60"))
RECIPE = f"""\
stages:
  - {{kind: data.labeled, name: photos, path: outside/photos/0.tar, label_key: cls, class_names: [{", ".join(NAMES)}]}}
  - {{kind: shapes.choices, name: pairs, pairs_per_pattern: 1}}
  - {{kind: models.clip, name: clip, source: outside/clip}}
  - {{kind: eval.zero_shot, name: zero_shot, data: photos, models: [clip], templates: ["a {{}} picture"]}}
  - {{kind: eval.mmvp_vlm, name: mmvp, data: pairs, models: [clip]}}
"""


@dataclass(frozen=True)
class Kind:
    """Files of one kind, and a function that reads one of them: it raises a UserError, or returns what it read.

    With `refuses`, it must raise.
    """

    files: list[Path]
    read: Callable[[Path], object]
    refuses: bool = True


def world(folder: Path) -> dict[str, Kind]:
    """Make a store with every kind of file, and return them with their readers."""
    known = stage_types(load_plugins())
    labeled(folder / "outside/photos", 14)
    tiny_clip(folder / "outside/clip", 0)
    recipe = parse_recipe(RECIPE, known, (), name="r", where="r.yaml")
    store = Store(folder / "store")
    steps = make_plan(recipe, store)
    events: list[Event] = []
    directory = run_plan(recipe, steps, store, events.append).directory
    log = JsonLinesListener(directory / EVENTS_FILE)
    for event in events:
        log.vfm_event(event)
    log.close()
    artifacts = [step.slot.artifact for step in steps]
    photos, clip = Artifact.load(artifacts[0]), artifacts[2]
    caches = {path for name in photos.caches for path in (artifacts[0] / name).rglob("*") if path.is_file()}
    prepared = write_step(steps[1])
    with pytest.raises(KeyboardInterrupt):
        train(folder / "training", plan(checkpoint={"every_steps": 3}, ema_decay=0.9), data=Samples(stop=10))

    def report(_: Path) -> object:
        return summary_of_run(directory).stages and reports(directory)

    def features(_: Path) -> object:
        encoder = load_encoder(Artifact.load(clip), torch.device("cpu"))
        found = encode_dataset(run_in(folder / "ctx").ctx, open_dataset(photos), {"m": encoder}, ReadSettings())
        return found.keys, found.labels.tolist(), found.features["m"].tolist()

    def identities(_: Path) -> object:
        return [step.identity for step in make_plan(recipe, store)]

    def resume(file: Path) -> object:
        warnings: list[str] = []
        alone = DistributedWorld(torch.device("cpu"))
        newest = Checkpoints(folder / "training/work", plan().checkpoint, warnings.append, alone, {}).latest()
        if warnings:
            raise UserError(warnings[0])
        return newest and {name: {k: v.tolist() for k, v in one.items()} for name, one in newest.tensors.items()}

    def verified(_: Path) -> object:
        if lines := list(damaged_records(folder / "store")):
            raise UserError(lines[0])
        return None

    def export(file: Path) -> object:
        done = run_here("export", file.parent, "--format", "safetensors", "--out", folder / "exported")
        if done.code:
            raise UserError(done.err)
        shutil.rmtree(folder / "exported")
        return done.out

    def embeddings(file: Path) -> object:
        found = read_embeddings(folder / "index" / ("e.parquet" if "parquet" in file.name else "e.npy"))
        return found.keys, found.texts, found.vectors.tolist(), found.model, found.data

    for suffix in SUFFIXES:
        with open_writer(folder / f"index/e{suffix}", "clip") as writer:
            writer.write([f"{n:04d}" for n in range(50)], ["a"] * 50, np.random.default_rng(0).random((50, 8), "f4"))
    index = sorted((folder / "index").iterdir())

    published = [path for one in artifacts for path in sorted(one.rglob("*")) if path.is_file() and path not in caches]
    weights = [path for path in published if path.suffix == ".safetensors"]
    of_models = [path for path in published if path.is_relative_to(clip)]
    newest = max((folder / "training/work").glob("step-*"))
    return {
        "checkpoints": Kind([path for path in newest.rglob("*") if path.is_file()], resume),
        "weights of models": Kind(weights, lambda file: Artifact.load(_artifact(file, artifacts)).path),
        "models": Kind(of_models, lambda file: Artifact.load(_artifact(file, artifacts)).path),
        "models to export": Kind(of_models, export),
        "embeddings": Kind(index, embeddings),
        "datasets and reports": Kind(
            [path for path in published if path not in of_models and path.name != MANIFEST_FILE],
            lambda file: Artifact.load(_artifact(file, artifacts)).path,
        ),
        "manifests": Kind([one / MANIFEST_FILE for one in artifacts], report),
        "offsets and features": Kind(sorted(caches), features, refuses=False),
        "run.json": Kind([directory / RUN_FILE], report),
        "events.jsonl": Kind([directory / EVENTS_FILE], verified),
        "step.json": Kind([prepared / "step.json"], lambda file: read_step(prepared, known).identity),
        "fingerprints": Kind(sorted((folder / "store").glob(".fingerprints*.json")), identities, refuses=False),
    }


def _artifact(file: Path, artifacts: list[Path]) -> Path:
    return next(folder for folder in artifacts if file.is_relative_to(folder))


def flips(kinds: dict[str, Kind], count: int) -> Iterator[tuple[str, str]]:
    """Flip single bits, one at a time, and yield the kind of file and the outcome of each."""
    draw = random.Random(0)
    whole = {name: repr(kind.read(kind.files[0])) for name, kind in kinds.items()}
    for number in range(count):
        name, kind = list(kinds.items())[number % len(kinds)]
        file = draw.choice([file for file in kind.files if file.stat().st_size])
        before = file.read_bytes()
        bit = draw.randrange(8 * len(before))
        damaged = bytearray(before)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            same = repr(kind.read(file)) == whole[name]
            yield name, SAME if same and not kind.refuses else f"unnoticed: bit {bit} of {file}"
        except UserError as error:
            named = file.name in str(error) or file.parent.name in str(error)
            yield name, REFUSED if named else f"refused without its name: bit {bit} of {file}: {error}"
        file.write_bytes(before)


def table(counts: Counter[tuple[str, str]]) -> str:
    """Return the outcomes by kind of file."""
    lines = [f"{'file':24}{'flips':>8}{'refused':>10}{'as it was':>12}{'unnoticed':>12}"]
    for name in dict.fromkeys(name for name, _ in counts):
        own = Counter({outcome: count for (kind, outcome), count in counts.items() if kind == name})
        others = own.total() - own[REFUSED] - own[SAME]
        lines.append(f"{name:24}{own.total():>8}{own[REFUSED]:>10}{own[SAME]:>12}{others:>12}")
    return "\n".join(lines)


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Kind]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fingerprints, "SETTLED", -(10**12))  # also files that were just written are remembered
    return world(tmp_path)


def test_no_flipped_bit_goes_unnoticed(kinds: dict[str, Kind]) -> None:
    assert all(kind.files for kind in kinds.values())
    counts = Counter(flips(kinds, NUM_FLIPS))
    sys.stdout.write(f"\n{table(counts)}\n")
    assert {outcome for _, outcome in counts} <= {REFUSED, SAME}
