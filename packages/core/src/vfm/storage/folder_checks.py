"""Checks of folders before they are used: their files must have the hashes of their record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from multiprocessing import parent_process
from pathlib import Path

from vfm.base import UserError
from vfm.storage.integrity import MUCH, Known, damage, known_files, num_bytes, read_sealed

_checked: dict[str, int] = {}  # folder -> hash of the state of its files when their hashes were last compared


def share_of(known: Known, rank: int, size: int) -> Known:
    """Choose the files that one of several processes reads, so that each reads about as many bytes.

    Args:
        known: Sizes and hashes of the files, equal in all processes.
        rank: Number of this process.
        size: Number of processes.
    """
    loads = [0] * size
    share = {}
    for name, entry in sorted(known.items(), key=lambda item: (-item[1][0], item[0])):  # large files first
        lightest = loads.index(min(loads))
        loads[lightest] += entry[0]
        if lightest == rank:
            share[name] = entry
    return share


def check_folder(
    folder: Path, record_file: str, below: str = "", on_much: Callable[[int], None] = lambda count: None
) -> None:
    """Compare the hashes of a folder's files, unless this process already did so and the files have not changed.

    Nothing is compared for a folder without a record, nor in worker processes (`multiprocessing`), since the process
    that started them has checked the files.

    Args:
        folder: The folder.
        record_file: Name of the file with the sizes and hashes.
        below: Only files whose path begins with this.
        on_much: Called with the number of bytes to read if there are many.

    Raises:
        UserError: If files are missing or damaged, one line each.
    """
    if not (folder / record_file).is_file() or parent_process() is not None:
        return
    known = known_files(read_sealed(folder / record_file), folder / record_file)
    if not known:
        return
    chosen = {name: entry for name, entry in known.items() if name.startswith(below)}
    key = f"{folder.resolve()} {below}"
    state = _state(folder, chosen)
    if state is not None and _checked.get(key) == state:
        return
    total = num_bytes(chosen)
    if total >= MUCH:
        on_much(total)
    lines = _damage_with_cure(folder, chosen)
    if lines:
        raise UserError("\n".join(lines))
    if state is not None:
        _checked[key] = state


def check_together(
    folders: Iterable[Path],
    record_file: str,
    rank: int,
    size: int,
    gather: Callable[[list[str]], list[str]],
    on_much: Callable[[int], None] = lambda count: None,
) -> None:
    """Compare the hashes of folders' files once in a group of processes, so that no `check_folder` reads them again.

    Args:
        folders: The folders, equal in all processes.
        record_file: Name of the file with the sizes and hashes of each.
        rank: Number of this process, which compares a share of the files.
        size: Number of processes.
        gather: Joins the lines of all processes.
        on_much: As in `check_folder`.

    Raises:
        UserError: In all processes, if files are missing or damaged, one line each.
    """
    records: dict[Path, Known] = {}
    lines: list[str] = []
    existing = {folder.resolve(): folder for folder in folders if (folder / record_file).is_file()}
    for folder in existing.values():
        try:
            records[folder] = known_files(read_sealed(folder / record_file), folder / record_file) or {}
        except UserError as error:
            lines.append(str(error))
    states = {}
    files: dict[str, tuple[int, str]] = {}
    for folder, known in records.items():
        states[folder] = _state(folder, known)
        for name, entry in known.items():
            files[str(folder / name)] = entry
    total = num_bytes(files)
    if total >= MUCH:
        on_much(total)
    share = share_of(files, rank, size)
    for folder, known in records.items():
        own = {name: entry for name, entry in known.items() if str(folder / name) in share}
        lines += _damage_with_cure(folder, own)
    lines = gather(lines)
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))
    for folder, state in states.items():
        if state is not None:
            _checked[f"{folder.resolve()} "] = state


def _damage_with_cure(folder: Path, known: Known) -> list[str]:
    # The run's folder has links to artifacts, and removing a link does not make the artifact again.
    artifact = os.path.realpath(folder)
    return [f"{line}; remove {artifact} to make it again" for line in damage(folder, known)]


def _state(folder: Path, known: Known) -> int | None:
    """Hash the sizes, times and inodes of files. They change when a file is written.

    Returns:
        None if a file is missing.
    """
    states = []
    try:
        for name in known:
            status = os.stat(folder / name)
            states.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    except OSError:
        return None
    return hash((*known.items(), *states))
