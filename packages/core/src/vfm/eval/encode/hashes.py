"""Hashes of the evaluated items and of the checkpoint, which make a score traceable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vfm.interfaces import Artifact, Context

ITEM_BYTES = 32  # of sha256


def item_digest(facts: Any, images: Sequence[bytes]) -> bytes:
    """Hash one item with sha256.

    Args:
        facts: Key, texts, label, or anything that JSON can hold.
        images: Its image files.
    """
    return _joined(facts, [hashlib.sha256(image).digest() for image in images])


def sample_digest(facts: Any, image: bytes) -> bytes:
    """Hash a sample like `item_digest`, and append the hash of its image file alone."""
    hash_of_image = hashlib.sha256(image).digest()
    return _joined(facts, [hash_of_image]) + hash_of_image


def _joined(facts: Any, hashes: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for hash_of_image in hashes:
        digest.update(hash_of_image)
    return digest.digest()


def data_hash(dataset: Artifact, digests: Iterable[bytes]) -> str:
    """Hash the metadata of a dataset and its evaluated items, in order, with sha256."""
    digest = hashlib.sha256(dataset.model_dump_json().encode())
    for item in digests:
        digest.update(item)
    return digest.hexdigest()


def warn_of_overlap(ctx: Context, train: Iterable[bytes], data: Sequence[bytes]) -> None:
    """Warn if test images are also training images, whatever their keys and classes.

    Args:
        ctx: The stage's context.
        train: Hash of each training image.
        data: Hash of each test image.
    """
    known = set(train)
    shared = sum(item in known for item in data)
    if shared:
        ctx.warn(
            f"{shared:,} of the {len(data):,} test images are also training images: the score says little about new"
            " images"
        )


def checkpoint_hash(checkpoint: Artifact) -> str:
    """Hash the weights and configuration files of a checkpoint with sha256, including subfolders, sorted by name.

    The configuration is included because a different normalisation of images changes every result.
    """
    digest = hashlib.sha256()
    for pattern in ("*.safetensors", "*config.json"):
        for file in sorted(checkpoint.path.rglob(pattern)):
            status = file.stat()
            digest.update(_file_hash(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(1024)
def _file_hash(file: Path, size: int, mtime: int) -> bytes:
    """Hash a file with sha256. The hash is cached by size and time, since every evaluation in a run needs it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
