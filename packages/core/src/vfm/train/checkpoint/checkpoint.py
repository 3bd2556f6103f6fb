"""Checkpoints, from which a training run resumes exactly after a crash.

    step-00000120/
        model.safetensors             the task's weights and buffers, without frozen models
        state/optimizer.safetensors   `name/key` of each parameter's optimizer state
        state/ema.safetensors         averaged weights, with `ema_decay`
        state/best.safetensors        the weights with the highest score, with `keep_best`
        shards/*.safetensors          with FSDP instead of the first three: one file per process (`shards.py`)
        artifact.json                 type and step, so that `continue_from` can name the folder
        meta.json                     step, the loop's counters, and sizes and hashes of the other files

A thread copies the tensors while the next forward and backward passes read them, and writes the copies while training
continues. A folder has a temporary name until its bytes are on the disk. Nothing is pickled. Any number of processes
can read both forms, sharded or not.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from vfm.base import UserError
from vfm.interfaces import CheckpointPolicy, TrainingState
from vfm.models import save_state_dict
from vfm.storage.folder_checks import share_of
from vfm.storage.integrity import (
    FILES,
    Known,
    damage,
    hash_file,
    hash_folder,
    known_files,
    read_sealed,
    seal,
    wrong_sizes,
)
from vfm.storage.publishing import publish_folder, sync
from vfm.train.checkpoint.checkpoint_folders import checkpoints_in, step_of
from vfm.train.checkpoint.host_copies import DeviceCopies, Pauses, copy_to_host
from vfm.train.checkpoint.shards import Parts, cut, read_shards, write_shards
from vfm.train.parallel.dist import TIMEOUT, DistributedWorld

META_FILE = "meta.json"
SHARDS = "shards"
TENSOR_FILES = {
    "model": "model.safetensors",
    "optimizer": "state/optimizer.safetensors",
    "ema": "state/ema.safetensors",
    "best": "state/best.safetensors",
}
DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)  # errors from reading a damaged checkpoint


@dataclass
class Snapshot:
    """The state of a training run after `step` optimizer steps."""

    step: int
    tensors: Parts  # by the names in TENSOR_FILES; `best` only in rank 0
    facts: dict[str, Any]  # JSON
    log: Path | None = None  # the file whose length is one of the facts
    folder: Path | None = None  # the folder that it was read from
    is_last: bool = False  # whether no later step changes the tensors, so that they need no copy on the CPU


class Checkpoints:
    """The `step-*` folders of a training run. Every process has one of these objects.

    Args:
        folder: Folder of the checkpoints, shared by all processes.
        policy: When to save, and which checkpoints to keep.
        warn: Reports a damaged checkpoint.
        world: This process.
        sharded: Parameters of which each process stores a part, by name; empty without FSDP.
    """

    def __init__(
        self,
        folder: Path,
        policy: CheckpointPolicy,
        warn: Callable[[str], None],
        world: DistributedWorld,
        sharded: Mapping[str, DTensor],
    ) -> None:
        self.folder = folder
        self.policy = policy
        self.warn = warn
        self.world = world
        self.sharded = sharded
        self.saved_at = time.monotonic()
        # The writing thread runs collectives at the same time as the training, so it needs a separate group.
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT) if sharded else None
        self.device_copies = DeviceCopies(world.device) if world.device.type == "cuda" else None
        self.pauses = Pauses()
        self._written: threading.Event | None = None  # of the checkpoint that is being written
        self._copied = threading.Event()
        self._error: BaseException | None = None

    def due_by_step(self, step: int) -> bool:
        """Check whether a checkpoint is due after this step by `every_steps` or `keep_every`."""
        return self.is_kept(step) or (self.policy.every_steps is not None and step % self.policy.every_steps == 0)

    def is_kept(self, step: int) -> bool:
        """Check whether the checkpoint after this step is kept by `keep_every`."""
        return self.policy.keep_every is not None and step % self.policy.keep_every == 0

    def due_by_time(self) -> bool:
        """Check whether the last checkpoint of this run is `every_minutes` old."""
        return time.monotonic() - self.saved_at >= self.policy.every_minutes * 60

    def found(self) -> list[Path]:
        """List the checkpoints of the training run, oldest first."""
        return checkpoints_in(self.folder)

    def save(self, snapshot: Snapshot) -> None:
        """Start copying and writing the tensors. The oldest checkpoints are deleted afterwards.

        All processes call it. Without FSDP only rank 0 writes. The tensors must not change before `wait_for_copy`
        returns.

        Raises:
            OSError: If the previous checkpoint could not be written.
        """
        with self.pauses.counted():
            self.wait()
        self.saved_at = time.monotonic()
        if self.group or self.world.is_main:
            self._copied.clear()
            copies = self.device_copies.start(snapshot.tensors) if self.device_copies else None
            self._written = threading.Event()
            # A daemon, because the process must not wait for other processes after an error elsewhere.
            threading.Thread(target=self._run, args=(snapshot, copies, self._written), daemon=True).start()

    def wait_for_copy(self) -> None:
        """Wait until the tensors of the checkpoint that is being written have been copied. On CUDA the device waits."""
        if self.device_copies:
            self.device_copies.hold_device()
        elif self._written:
            with self.pauses.counted():
                self._copied.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the checkpoint that is being written is complete, for a limited time if `seconds` is given.

        Raises:
            OSError: If the checkpoint could not be written, for example because the disk is full.
        """
        # Not `Thread.join`: interrupted by Ctrl-C, it takes the thread for ended (CPython 3.11). A second call then
        # returned at once, and the process ended with SIGABRT while the thread was copying tensors.
        if self._written:
            self._written.wait(seconds)
        error = self._error
        self._written = None
        self._error = None
        if error:
            raise error

    def latest(self) -> Snapshot | None:
        """Read the newest checkpoint that every process can read. Damaged ones are reported and skipped.

        Raises:
            UserError: If some processes see no checkpoints, but others do.
        """
        steps = self.world.gather(list(map(step_of, self.found())))
        if any(steps) and not all(steps):
            raise UserError(
                f"the checkpoints in {self.folder} differ between processes: expected the same steps, got {steps} in"
                " the order of their ranks; the folder must be shared by all machines"
            )
        for step in sorted(set.intersection(*map(set, steps)), reverse=True):
            folder = self._folder_of(step)
            snapshot, problem = self._try_to_read(folder)
            if snapshot:
                return snapshot
            self.warn(f"{folder}: the checkpoint cannot be read ({problem}); using the one before it")
        return None

    def read(self, folder: Path) -> Snapshot:
        """Read a checkpoint. It may be from another training run.

        Raises:
            UserError: If the checkpoint is missing or damaged.
        """
        snapshot, problem = self._try_to_read(folder)
        if not snapshot:
            raise UserError(f"{folder}: the checkpoint cannot be read ({problem})")
        return snapshot

    def _try_to_read(self, folder: Path) -> tuple[Snapshot | None, str]:
        """Read a checkpoint in all processes, or in none and with the first problem, since each checks some files."""
        snapshot, problem = None, ""
        try:
            snapshot = self._read(folder)
        except DAMAGED as error:
            problem = str(error) or type(error).__name__
        problems = list(filter(None, self.world.gather(problem)))
        return (None, problems[0]) if problems else (snapshot, "")

    def _folder_of(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _run(self, snapshot: Snapshot, copies: Parts | None, written: threading.Event) -> None:
        try:
            try:
                if self.device_copies:
                    self.device_copies.wait()
                tensors = copies or copy_to_host(snapshot.tensors, copy=not snapshot.is_last)
            finally:
                self._copied.set()
            self._write(replace(snapshot, tensors=tensors))
        except BaseException as error:
            self._error = error
        finally:
            written.set()

    def _write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint under a temporary name, and rename it. It runs in the thread of each writing process."""
        target = self._folder_of(snapshot.step)
        unfinished = self.folder / f"unfinished-{target.name}"
        if self.world.is_main:
            self._discard_unfinished()
        error: OSError | None = None
        try:
            shards = self._write_shards(snapshot.tensors, unfinished / SHARDS) if self.group else {}
            if self.world.is_main:
                self._complete(snapshot, unfinished, shards)
                shutil.rmtree(target, ignore_errors=True)  # an existing one was damaged
                publish_folder(unfinished, target)
                self._delete_old(snapshot.step)
        except OSError as raised:
            error = raised
        errors = list(filter(None, self._gather(error)))
        if errors:
            if self.world.is_main:  # free the space, as the disk is probably full
                self._discard_unfinished()
            raise errors[0]

    def _write_shards(self, tensors: Parts, folder: Path) -> Known:
        """Write this process' shard, and collect the sizes and hashes of all shards, each hashed by one process."""
        dist.barrier(self.group)  # wait until rank 0 has removed the remains of a crash
        assert self.group
        write_shards({part: values for part, values in tensors.items() if part != "best"}, folder, self.group)
        files = sorted(folder.iterdir())
        seen = self._gather([file.name for file in files])
        if seen.count(seen[0]) < len(seen):
            raise UserError(f"{self.folder}: every process sees other files there: it must be shared by all machines")
        mine = files[self.world.rank :: self.world.size]
        hashes = {f"{SHARDS}/{file.name}": (file.stat().st_size, hash_file(file)) for file in mine}
        known: dict[str, tuple[int, str]] = {}
        for hashes_of_process in self._gather(hashes):
            known |= hashes_of_process
        return known

    def _gather(self, value: Any) -> list[Any]:
        values = [value]
        if self.group:
            values *= self.world.size
            dist.all_gather_object(values, value, self.group)
        return values

    def _complete(self, snapshot: Snapshot, folder: Path, shards: Known) -> None:
        """Write the tensors that are not sharded and, last, the record of all files."""
        (folder / "state").mkdir(parents=True)
        for part, tensors in snapshot.tensors.items():
            if not self.group or part == "best":
                save_state_dict(tensors, folder / TENSOR_FILES[part])
        TrainingState.create(folder, step=snapshot.step)
        if snapshot.log:  # after a power cut, the disk must have all lines of the log that the checkpoint counts
            sync(snapshot.log)
        files = hash_folder(folder, without=[SHARDS]) | dict(shards)
        (folder / META_FILE).write_bytes(seal({"step": snapshot.step, **snapshot.facts, FILES: files}, indent=None))

    def _delete_old(self, step: int) -> None:
        """Delete checkpoints that the policy does not keep. Later steps are damaged and do not count as kept."""
        complete = [folder for folder in self.found() if step_of(folder) <= step]
        for old in complete[: -self.policy.keep_last]:
            if not self.is_kept(step_of(old)):
                shutil.rmtree(old)

    def _read(self, folder: Path) -> Snapshot:
        facts = read_sealed(folder / META_FILE, "step")
        step = facts.pop("step")
        known = known_files(facts, folder / META_FILE) or {}
        facts.pop(FILES, None)
        if step_of(folder) != step:
            raise ValueError(f"{META_FILE} belongs to step {step}")
        share = share_of(known, self.world.rank, self.world.size)
        problems = wrong_sizes(folder, known) or damage(folder, share)
        if problems:
            raise ValueError("; ".join(problems))
        tensors = read_shards(folder / SHARDS, self.sharded) if (folder / SHARDS).is_dir() else {}
        for part, file in TENSOR_FILES.items():
            if (folder / file).exists() and (part != "best" or self.world.is_main):
                tensors[part] = cut(part, load_file(folder / file), {} if part == "best" else self.sharded)
        missing = {"model", "optimizer"} - set(tensors)
        if missing:
            raise ValueError(f"{' and '.join(sorted(missing))} missing")
        return Snapshot(step, tensors, facts, folder=folder)

    def _discard_unfinished(self) -> None:
        for leftover in self.folder.glob("unfinished-*"):
            shutil.rmtree(leftover)
