"""Fixtures: a pool of tars in the test's folder, and a function that runs a stage as the flow does.

It also makes this folder's modules importable by tests.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from vfm.data import DatasetSpec, Shard, write_index, write_tar
from vfm.plugin import Artifact, Context, Event, Pool, Stage

sys.path.insert(0, str(Path(__file__).parent))
Texts = Mapping[str, list[str]]  # language -> captions
MakePool = Callable[..., Pool]
RunStage = Callable[..., Any]


@pytest.fixture
def make_pool(tmp_path: Path) -> MakePool:
    """Return a function that makes a Pool of (uid, texts) samples in tars of `shard_size` samples, in the given order.

    `images` has files by uid, and `urls` URLs; other samples have an unreadable image and no URL.
    """

    def make(
        name: str,
        samples: Iterable[tuple[str, Texts]],
        *,
        shard_size: int = 40,
        images: Mapping[str, bytes] | None = None,
        urls: Mapping[str, str] | None = None,
    ) -> Pool:
        samples, folder = list(samples), tmp_path / "store" / name
        folder.mkdir(parents=True)
        shards = []
        for start in range(0, len(samples), shard_size):
            tar = tmp_path / f"{name}-{start:06d}.tar"
            part = samples[start : start + shard_size]
            members = [
                (f"{i:06d}", {"jpg": (images or {}).get(uid, b"\xff"), "json": _record(uid, texts, urls or {})})
                for i, (uid, texts) in enumerate(part)
            ]
            shards.append(Shard.of(tar, write_tar(tar, members)))
        languages = list(dict.fromkeys(language for _, texts in samples for language in texts))
        spec = DatasetSpec(texts={language: f"json.{language}" for language in languages})
        return Pool.create(folder, num_samples=write_index(folder, shards, spec), languages=languages)

    return make


def _record(uid: str, texts: Texts, urls: Mapping[str, str]) -> bytes:
    return json.dumps({"uid": uid, "url": urls.get(uid), **texts}).encode()


@pytest.fixture
def run_stage(tmp_path: Path) -> RunStage:
    """Return a function that runs a stage in the test's store, with inputs by the names of its refs."""

    def run(stage: Stage, *, send: Callable[[Event], None] = lambda event: None, **inputs: Artifact) -> Artifact:
        directory, work = tmp_path / "store" / stage.name, tmp_path / "work" / stage.name
        shutil.rmtree(directory, ignore_errors=True)  # the store also removes what a crash left
        directory.mkdir(parents=True)
        work.mkdir(parents=True, exist_ok=True)
        return stage.run(Context(stage.name, directory, work, {ref: a.path for ref, a in inputs.items()}, send))

    return run
