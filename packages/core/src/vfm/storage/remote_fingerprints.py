"""Fingerprint remote files by their size and the version that the server reports, such as an ETag.

Without a version, 16 evenly spaced blocks of the file are read, from the first byte to the last. The fingerprint of a
folder hashes the names and fingerprints of its files. Paths and hosts are not included, so a mirror with the same marks
has the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from vfm.base import UserError
from vfm.storage import files
from vfm.storage.remote import facts_of, read_spans
from vfm.storage.remote_spans import RemoteError, RemoteFacts, Span

DIGITS = 32
NUM_BLOCKS, BLOCK = 16, 64 << 10  # number of blocks read of a file without a mark, and bytes per block


def remote_fingerprints(paths: Sequence[str]) -> dict[str, str]:
    """Compute the fingerprint of each remote file or folder. The files are queried concurrently.

    Raises:
        UserError: If a file or folder does not exist, or its server does not answer.
    """
    folders = list(filter(files.is_directory, paths))
    singles = [path for path in paths if path not in set(folders)]
    return _of_files(singles) | {path: _of_folder(path) for path in folders}


def _of_folder(path: str) -> str:
    inside = list(files.walk(path))
    fingerprints = _of_files([f"{path.rstrip('/')}/{name}" for name in inside])
    return _hashed(sorted(zip(inside, fingerprints.values(), strict=True)))


def _of_files(paths: Sequence[str]) -> dict[str, str]:
    fingerprints: dict[str, str] = {}
    for path, facts in zip(paths, facts_of(paths), strict=True):
        if isinstance(facts, RemoteError):
            raise UserError(str(facts))
        fingerprints[path] = _hashed([facts.size, facts.mark or _sampled(path, facts)])
    return fingerprints


def _sampled(path: str, facts: RemoteFacts) -> str:
    last = max(0, facts.size - BLOCK)
    starts = sorted({last * number // (NUM_BLOCKS - 1) for number in range(NUM_BLOCKS)})
    digest = hashlib.sha256()
    for data in read_spans([Span(path, start, min(facts.size, start + BLOCK)) for start in starts]):
        if isinstance(data, RemoteError):
            raise UserError(str(data))
        digest.update(data)
    return digest.hexdigest()


def _hashed(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]
