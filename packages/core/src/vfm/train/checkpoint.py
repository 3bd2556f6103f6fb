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
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

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
ENDING = (signal.SIGTERM, signal.SIGUSR1)  # signals after which a training saves a checkpoint and stops
DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)  # what reading a damaged checkpoint raises


@dataclass
class Snapshot:
    """The state of a training after `step` optimizer steps."""

    step: int
    tensors: dict[str, dict[str, Tensor]]  # by the names in TENSOR_FILES
    facts: dict[str, Any]  # JSON


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return weights and buffers by name; tied ones (one tensor under several names) by their first name only."""
    seen: set[int] = set()
    tensors = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            tensors[name] = value.detach()
    return tensors


def load_model(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `model_tensors` returned, into all names of tied weights; every key must match."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    names = {name: first.setdefault(id(value), name) for name, value in state.items()}
    module.load_state_dict({name: tensors[key] for name, key in names.items() if key in tensors}, strict=True)


def as_saved(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values that belong to parameters, by name, in the shapes of the module's state dict.

    A layer may store a weight wider than its checkpoints do (`runtime.pad_widths`), and only its own hooks can convert
    it; an average of that weight is equally wide. Values of other shapes, such as a count of steps, are unchanged.
    """
    params = dict(module.named_parameters())
    shaped = {name: value for name, value in values.items() if value.shape == params[name].shape}
    with _in_place_of_weights(module, shaped):
        state = module.state_dict()
    return {**values, **{name: state[name] for name in shaped}}


def as_stored(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `as_saved` returned, in the parameters' shapes."""
    params, state = dict(module.named_parameters()), module.state_dict()
    wider = {
        name: torch.zeros_like(params[name])
        for name, value in values.items()
        if value.shape == state[name].shape != params[name].shape
    }
    with _in_place_of_weights(module, wider):
        module.load_state_dict({name: values[name] for name in wider}, strict=False)
    return {**values, **wider}


@contextmanager
def _in_place_of_weights(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    params = {name: param for name, param in module.named_parameters() if name in values}
    weights = {name: param.data for name, param in params.items()}
    try:
        for name, param in params.items():
            param.data = values[name]
        yield
    finally:
        for name, param in params.items():
            param.data = weights[name]


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter/key`, by the parameters' names."""
    by_key: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, param in module.named_parameters():
        for key, value in optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor):
                by_key[key][name] = value
    return {f"{name}/{key}": value for key in by_key for name, value in as_saved(module, by_key[key]).items()}


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned; rates and decays stay those of the configuration."""
    names = {id(param): name for name, param in module.named_parameters()}
    order = [names[id(param)] for group in optimizer.param_groups for param in group["params"]]
    by_key: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        by_key[key][name] = value
    state: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, values in by_key.items():
        for name, value in as_stored(module, values).items():
            state[name][key] = value
    by_index = {index: state[name] for index, name in enumerate(order) if name in state}
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})


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


class Termination(threading.Event):
    """Set by a signal that asks for an end; `number` is that of the signal."""

    number: int = signal.SIGTERM


@contextmanager
def termination() -> Iterator[Termination]:
    """Yield an event that SIGTERM and SIGUSR1 set instead of ending the process, so that a checkpoint can be saved.

    Python delivers signals to the main thread; in another thread the event is never set.
    """
    requested = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request(number: int, frame: FrameType | None) -> None:
        requested.number = number
        requested.set()

    before = {number: signal.signal(number, request) for number in ENDING}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
