"""Targets of vfm's own files: recipes, results and runs of a store, prepared steps, checkpoints, caches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fuzz.data import NAMES, caption, tar
from fuzz.labels import label
from fuzz.models import clip
from fuzz.targets import PLAN, RUN, Target, recipe, vfm
from vfm.flow.plan.store import Slot

MORE = ("run", "more.yaml", "--quiet")
POOL: dict[str, Any] = {"kind": "data.pairs", "name": "pool", "path": "x.tar"}
MADE: list[dict[str, Any]] = [
    POOL,
    {"kind": "data.labeled", "name": "val", "path": "l/x.tar", "class_names": NAMES},
    {"kind": "models.clip", "name": "clip", "source": "clip"},
]
EVALUATED: list[dict[str, Any]] = [
    {"kind": "eval.zero_shot", "name": "zero_shot", "models": ["clip"], "data": "val"},
    {"kind": "eval.retrieval", "name": "retrieval", "models": ["clip"], "data": "pool"},
    {"kind": "eval.knn", "name": "knn", "models": ["clip"], "train": "val", "data": "val", "k": 2},
]
TRAINED: dict[str, Any] = {
    "kind": "clip.train", "name": "clip", "model": "ViT-Pico-8-32", "data": "pool", "steps": 3, "global_batch_size": 4,
    "checkpoint": {"every_steps": 1}, "schedule": {"warmup_steps": 0}, "runtime": {"threads": 1, "device": "cpu"},
}  # fmt: skip


def data() -> None:
    tar(txt=caption)
    clip()
    Path("clip/artifact.json").unlink()
    Path("l").mkdir()
    os.chdir("l")
    tar(cls=label)
    os.chdir("..")


def results() -> None:
    """Run evaluations; `more.yaml` has one that reads what they published."""
    data()
    later = {**EVALUATED[0], "name": "other", "resize_mode": "squash"}
    recipe(*MADE, *EVALUATED, later, name="more.yaml")
    recipe(*MADE, *EVALUATED)
    vfm(*RUN)


def base() -> None:
    data()
    Path("base.yaml").write_text("stages:\n  - {kind: data.pairs, name: pool, path: x.tar, texts: {en: txt}}\n")
    Path("r.yaml").write_text(
        "# a recipe\nbase: base.yaml\nseeds: [0, 1]\nruntime: {workers: 0}\nstages:\n"
        "  - name: pool\n    num_samples: 5\n"
    )


def prepared() -> None:
    data()
    recipe(POOL, TRAINED)
    vfm("run", "r.yaml", "--prepare", "clip")
    (folder,) = Path("store").glob(".clip.train-*.work")
    Path("work").symlink_to(folder)


def killed() -> None:
    """Train, and die before the model is published."""
    data()
    recipe(POOL, TRAINED)
    vfm("run", "r.yaml", "--prepare", "clip")
    Slot.publish = lambda *args, **options: os._exit(0)  # type: ignore[method-assign]
    vfm(*RUN)


def curves() -> None:
    """Train twice; `more.yaml` compares the trainings by their curves."""
    data()
    trained = {**TRAINED, "evaluation": {"tasks": [{"kind": "eval.retrieval", "data": "pool"}], "every_steps": 1}}
    score = "val/image_retrieval_recall@1"
    recipe(POOL, trained, {"kind": "eval.curves", "name": "c", "models": ["clip"], "score": score}, name="more.yaml")
    recipe(POOL, trained)
    vfm(*RUN)


def cached() -> None:
    """Cache a teacher's features; `more.yaml` trains on them."""
    data()
    targets = {"kind": "eva.targets", "name": "targets", "teacher": "clip", "data": "pool", "grid": [4, 4],
               "num_crops": 1, "micro_batch_size": 4, "samples_per_shard": 6}  # fmt: skip
    student = {"kind": "eva.pretrain", "name": "eva", "model": "eva02_pico_patch8_32", "targets": "targets",
               "data": "pool", "steps": 1, "global_batch_size": 4, "schedule": {"warmup_steps": 0}}  # fmt: skip
    recipe(POOL, MADE[2], targets, student, name="more.yaml")
    recipe(POOL, MADE[2], targets)
    vfm(*RUN)


ARTIFACT = "store/runs/r/artifacts"
STORE = [
    Target("recipe", base, ("r.yaml", "base.yaml"), (PLAN, PLAN, RUN),
           names=("r.yaml",)),  # it has the place of what its base lacks
    Target("run", results, ("store/runs/r/*",), (("report", "r"), PLAN, RUN, ("clean", "--dry-run"))),
    Target("JSON of results", results, ("store/*/*.json", "store/*/*/*.json"),
           (("report", "r"), PLAN, RUN, MORE, ("show", f"{ARTIFACT}/zero_shot"), ("clean", "--dry-run"))),
    Target("files of results", results, ("store/*/*", "store/*/*.parquet", "store/*/*/*"),
           (("report", "r"), MORE, ("embed", f"{ARTIFACT}/clip", "x.tar", "--out", "e.npy"))),
    Target("prepared step", prepared, ("store/.clip.train-*/*",), (("step", "work"),)),
    Target("checkpoint", killed, ("store/.clip.train-*/*/*", "store/.clip.train-*/*")),
    Target("curves", curves, ("store/*/*.jsonl",), (MORE,)),
    Target("cached tensors", cached, ("store/eva.targets-*/*", "store/eva.targets-*/*/*"), (MORE,)),
]  # fmt: skip
