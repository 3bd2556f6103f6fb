"""What pins the data behind a number: one hash over the items that were really judged, words and images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vfm.artifacts import Artifact


def item_digest(facts: Any, images: Sequence[bytes]) -> bytes:
    """sha256 of one item: its facts (key, texts, label: whatever JSON can say) and its images as they lie on disk."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for image in images:
        digest.update(hashlib.sha256(image).digest())
    return digest.digest()


def data_hash(dataset: Artifact, digests: Iterable[bytes]) -> str:
    """sha256 of a data set's own facts and of its judged items, in their order."""
    digest = hashlib.sha256(dataset.model_dump_json().encode())
    for item in digests:
        digest.update(item)
    return digest.hexdigest()


def checkpoint_hash(checkpoint: Artifact) -> str:
    """sha256 over what makes a checkpoint's answers: its weights and how they are used, in the order of their names."""
    digest = hashlib.sha256()
    for pattern in ("*.safetensors", "*config.json"):
        for file in sorted(checkpoint.path.glob(pattern)):
            status = file.stat()
            digest.update(_file_hash(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(1024)
def _file_hash(file: Path, size: int, mtime: int) -> bytes:
    """sha256 of a file, made once as long as it is the same: evaluations of a run ask for it again and again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
