"""Prove a published result from the hash of a run's record, or the root of an artifact, back to outside files.

The hash of a run is the SHA-256 of its `run.json`, which its page has too. The record commits to the roots of all
artifacts, a root to all files and to the roots of the inputs, and an identity to the contents of outside files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vfm.base import UserError
from vfm.flow.plan.roots import manifest_of, origin_of
from vfm.flow.plan.store import Store
from vfm.flow.records.input_changes import OutsideInput, inputs_of
from vfm.flow.records.run_verification import run_problems
from vfm.flow.records.runs import RUN_FILE, hash_of_record, kept_runs
from vfm.flow.records.verification import Place, place_of

_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Proof:
    """Everything that a hash commits to.

    Attributes:
        name: The run or artifact with this hash.
        run: Folder of the run. None: the hash is the root of an artifact.
        artifacts: The artifacts, including all inputs of inputs.
        inputs: The outside files that they were made from.
        problems: Lines about parts that are missing or not proven.
    """

    name: str
    run: Path | None
    artifacts: tuple[Place, ...]
    inputs: tuple[OutsideInput, ...]
    problems: tuple[str, ...]


def proof_of(store: Path, digest: str) -> Proof:
    """Find everything that a hash commits to.

    Args:
        store: The store.
        digest: Hash of a run's record, or root of an artifact.

    Raises:
        UserError: If it is not a hash, or nothing in the store has it.
    """
    if not _HASH.fullmatch(digest):
        raise UserError(f"--root: expected 64 hexadecimal digits, got {digest!r}")
    artifacts = Store(store).artifacts()
    for run in kept_runs(Store(store)):
        if (run.directory / RUN_FILE).is_file() and hash_of_record(run.directory) == digest:
            names = list(map(str, run.record.get("artifacts", ())))
            problems = list(run_problems(run))
            if not run.record.get("roots"):
                problems.append(f"{run.directory}: not proven: its record is of an older version, without roots")
            return _proof(store, run.directory.name, run.directory, names, artifacts, problems)
    for folder in artifacts:
        if origin_of(folder).root == digest:
            return _proof(store, folder.name, None, [folder.name], artifacts, [])
    raise UserError(f"{store}: no run or artifact has the hash {digest}: it was changed, made again, or is not here")


def _proof(
    store: Path, name: str, run: Path | None, names: Iterable[str], artifacts: Iterable[Path], problems: list[str]
) -> Proof:
    """Collect the artifacts with these names, and all inputs of inputs."""
    slots = {folder.name[-8:]: folder for folder in artifacts}
    pending = list(map(store.joinpath, names))
    needed = {}
    while pending:
        folder = pending.pop()
        if folder in needed:
            continue
        needed[folder] = place_of(folder)
        try:
            inputs = manifest_of(folder)["inputs"]
        except UserError:
            continue  # its place has the line
        origin = origin_of(folder)
        for ref, identity in inputs.items():
            before = slots.get(identity[:8], Path(ref))
            root = origin_of(before).root
            if identity not in origin.roots or not root:
                problems.append(f"{folder}: not proven: it was computed from {ref}, without a root")
            elif origin.roots[identity] != root:
                problems.append(f"{folder}: computed from another {ref}: expected the root {origin.roots[identity]}")
            if root:
                pending.append(before)
    here = {folder.name for folder in needed}
    inputs = [source for source in inputs_of(store) if here & set(source.results)]
    return Proof(name, run, tuple(needed.values()), tuple(inputs), tuple(problems))
