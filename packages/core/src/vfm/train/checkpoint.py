"""Checkpoints: what a training needs to resume after a crash exactly as if there had been none.

    step-00000120/
        model.safetensors             the task's weights and buffers, without frozen models
        state/optimizer.safetensors   `name.key` of each parameter's optimizer state
        state/ema.safetensors         averaged weights, with `ema_decay`
        state/best.safetensors        the weights with the highest score, with `keep_best`
        artifact.json                 type and step, so that `continue_from` can name the folder
        meta.json                     step, the loop's counters, and sizes and hashes of the other files

A folder is written under another name and renamed when its bytes are on the disk. Nothing is pickled.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vfm.artifacts import TrainingState
from vfm.config import UserError
from vfm.integrity import FILES, damage, hash_folder, known_files, read_sealed, seal
from vfm.interfaces import CheckpointPolicy
from vfm.models import save_state_dict
from vfm.publishing import publish_folder

META_FILE = "meta.json"
TENSOR_FILES = {
    "model": "model.safetensors",
    "optimizer": "state/optimizer.safetensors",
    "ema": "state/ema.safetensors",
    "best": "state/best.safetensors",
}
DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)  # what reading a damaged checkpoint raises


@dataclass
class Snapshot:
    """The state of a training after `step` optimizer steps."""

    step: int
    tensors: dict[str, dict[str, Tensor]]  # by the names in TENSOR_FILES
    facts: dict[str, Any]  # JSON


class Checkpoints:
    """The `step-*` folders of a training."""

    def __init__(self, folder: Path, policy: CheckpointPolicy, warn: Callable[[str], None]) -> None:
        self.folder, self.policy, self.warn = folder, policy, warn
        self.saved_at = time.monotonic()

    def due_by_step(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step by `every_steps` or `keep_every`."""
        return self.is_kept(step) or (self.policy.every_steps is not None and step % self.policy.every_steps == 0)

    def is_kept(self, step: int) -> bool:
        """Return whether the checkpoint after this step is kept by `keep_every`."""
        return self.policy.keep_every is not None and step % self.policy.keep_every == 0

    @staticmethod
    def step_of(folder: Path) -> int:
        """Return the step of a checkpoint's folder by its name."""
        return int(folder.name.removeprefix("step-"))

    def due_by_time(self) -> bool:
        """Return whether the last checkpoint of this run is `every_minutes` old."""
        return time.monotonic() - self.saved_at >= self.policy.every_minutes * 60

    def found(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.folder.glob("step-[0-9]*"))

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint under another name, rename it, and delete the oldest ones."""
        target = self._place(snapshot.step)
        self._discard_unfinished()
        unfinished = self.folder / f"unfinished-{target.name}"
        try:
            self._write(snapshot, unfinished)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one
            publish_folder(unfinished, target)
        except OSError:  # a full disk: free what was written
            self._discard_unfinished()
            raise
        for old in self.found()[: -self.policy.keep_last]:
            if not self.is_kept(self.step_of(old)):
                shutil.rmtree(old)
        self.saved_at = time.monotonic()

    def latest(self) -> Snapshot | None:
        """Return the newest checkpoint that can be read; damaged ones are reported and skipped."""
        for folder in reversed(self.found()):
            try:
                return self._read(folder)
            except DAMAGED as error:
                self.warn(f"{folder}: the checkpoint cannot be read ({error}); using the one before it")
        return None

    def of_step(self, step: int) -> Snapshot:
        """Return the checkpoint of a step.

        Raises:
            UserError: it is missing or damaged.
        """
        folder = self._place(step)
        try:
            return self._read(folder)
        except DAMAGED as error:
            raise UserError(f"{folder}: the checkpoint cannot be read ({error})") from None

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _write(self, snapshot: Snapshot, folder: Path) -> None:
        (folder / "state").mkdir(parents=True)
        for name, tensors in snapshot.tensors.items():
            save_state_dict(tensors, folder / TENSOR_FILES[name])
        TrainingState.create(folder, step=snapshot.step)
        facts = {"step": snapshot.step, **snapshot.facts, FILES: hash_folder(folder)}
        (folder / META_FILE).write_bytes(seal(facts, indent=None))

    def _read(self, folder: Path) -> Snapshot:
        facts = read_sealed(folder / META_FILE, "step")
        step, known = facts.pop("step"), known_files(facts, folder / META_FILE)
        facts.pop(FILES, None)
        if folder != self._place(step):
            raise ValueError(f"{META_FILE} is that of step {step}")
        if problems := damage(folder, known or {}):
            raise ValueError("; ".join(problems))
        tensors = {name: load_file(folder / file) for name, file in TENSOR_FILES.items() if (folder / file).exists()}
        missing = {"model", "optimizer"} - set(tensors)
        if missing:
            raise ValueError(f"{' and '.join(sorted(missing))} missing")
        return Snapshot(step, tensors, facts)

    def _discard_unfinished(self) -> None:
        for leftover in self.folder.glob("unfinished-*"):
            shutil.rmtree(leftover)
