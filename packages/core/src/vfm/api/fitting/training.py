"""Train any model on any torch Dataset or DataLoader, with the loop of the recipes. Imports torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import nn

from vfm.api.fitting.training_data import batch_size, training_data
from vfm.api.fitting.training_folder import START, open_folder, recorded
from vfm.api.paths import AnyPath
from vfm.api.progress import listener, shown_by
from vfm.api.results import MAX_ROWS, Results, as_table, skipped_note
from vfm.api.runs import check_not_a_worker
from vfm.base import UserError, decisive_settings, drop_keys, error_lines, load_function
from vfm.data.loading.torch_dataset import seeded
from vfm.flow.listeners.listeners import number
from vfm.interfaces import LinesPanel, Series, Training, refs
from vfm.models import load_state_dict, save_state_dict
from vfm.models.weights import shapes_of, weights_hash
from vfm.storage.store_files import read_json_lines
from vfm.train import METRICS_FILE, Task, fit as run_loop, is_main
from vfm.train.module_task import LossFunction, ModuleTask, WeightFunction

CHECKPOINTS = "checkpoints"
WEIGHTS = "model.safetensors"
COLUMNS = {"step": pa.int64(), "samples": pa.int64(), "train/loss": pa.float64(), "train/lr": pa.float64()}
# Fields of a training stage that a call does not have.
NO_SETTINGS = ("kind", "name", "evaluation", "samples_seen", "epochs")
ARGUMENTS = ("device", "folder", "loss", "progress", "weight", "workers")  # arguments of a call that are not fields


class Settings(Training):
    """The configuration of training with `fit`."""

    @classmethod
    def known_keys(cls) -> list[str]:
        """List the arguments that a call may have."""
        return [name for name in (*super().known_keys(), *ARGUMENTS) if name not in NO_SETTINGS]


@dataclass(frozen=True, repr=False)
class Fit(Results):
    """A finished training run.

    Attributes:
        model: The module that was given, trained and in evaluation mode.
        metrics: Log entries every `log_every` steps, as in `metrics.jsonl`. Only the first of several processes has
            them. They are empty in the others.
        folder: Folder with checkpoints, metrics and `model.safetensors`, if one was named.
        skipped: Number of bad samples by reason.
    """

    model: nn.Module
    metrics: list[dict[str, Any]]
    folder: Path | None
    skipped: Counter[str]

    @property
    def loss(self) -> float:
        """Mean training loss between the last two log lines. NaN if `metrics` is empty."""
        if not self.metrics:
            return math.nan
        return float(self.metrics[-1]["train/loss"])

    @property
    def title(self) -> str:
        """One line about the results."""
        if not self.metrics:  # in a process other than the first
            return "trained"
        return f"trained {self.metrics[-1]['step']:,} steps; loss {number(self.loss)}{skipped_note(self.skipped)}"

    def table(self) -> Any:
        """Build an Arrow table with the columns step, samples, train/loss, train/lr and the other metrics."""
        rows = [drop_keys(row, ("split",)) for row in self.metrics]
        return as_table(rows, COLUMNS)

    def preview(self) -> Any:
        """Select at most 20 evenly spaced rows, including the last."""
        table = self.table()
        distance = -(-len(table) // MAX_ROWS)
        if not distance:
            return table
        return table.take(list(range(len(table) - 1, -1, -distance))[::-1])

    def drawing(self) -> str:
        """Draw the curve of the loss as SVG. Empty without vfm-core[report]."""
        if not find_spec("matplotlib") or not self.metrics:
            return ""
        data = self.table()
        curve = Series(name="loss", x=data["step"].to_pylist(), y=data["train/loss"].to_pylist())
        panel = LinesPanel(title="Training loss", series=[curve], x_label="step", y_label="loss")
        svg = load_function("vfm.report.charts:lines_svg")(panel, "fit")
        return f'<div style="max-width:460px">{svg}</div>'


def fit(
    task: Task[Any] | nn.Module,
    data: Any,
    *,
    steps: int,
    loss: LossFunction | None = None,
    weight: WeightFunction | None = None,
    folder: AnyPath | None = None,
    global_batch_size: int | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Fit:
    """Train a model on a torch Dataset or DataLoader. The same call resumes after a crash.

    With a Dataset, vfm draws the samples, and all random draws of a sample are seeded by (seed, step, sample). So a
    resumed run equals an uninterrupted one bit for bit on the CPU. With a DataLoader, resuming reads all earlier
    batches again.

    Args:
        task: A module together with `loss`, or a `vfm.train.Task` that contains the loss. It is trained in place. Parts
            in evaluation mode without trained parameters stay in evaluation mode.
        data: A map-style Dataset (or list) of dicts, tuples such as (image, label), or dataclasses. Tensors, arrays,
            numbers and PIL images are stacked, (B, ...), and texts become lists. Or a DataLoader, or another iterable
            of such batches that can be iterated several times.
        steps: Optimizer steps. The data are repeated as often as needed.
        loss: `loss(model, batch)` returns a scalar tensor, or a scalar and other metrics by name. Micro-batches and
            processes change no result if it is a mean over the samples.
        weight: For a loss that is a weighted mean, `weight(batch)` returns the sum of the batch's weights, such as
            `lambda batch: batch["weight"].sum()`. Without it a weighted mean depends on the size of micro-batches.
        folder: Folder for checkpoints, metrics and the trained weights (`model.safetensors`). By default nothing is
            saved.
        global_batch_size: Samples per step, by default 128. A DataLoader determines it. For a loader without a batch
            size, such as webdataset's, the samples of its batches are counted.
        lr: Peak learning rate.
        seed: Seed of the order and of all random draws.
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: Number of processes that read a Dataset. 0 reads in this thread. A DataLoader has its own workers.
        progress: Show a progress bar and messages.
        settings: Other fields of a training stage, as in a recipe: `optimizer={"type": "sgd"}`, `schedule`,
            `ema_decay`, `precision`, `micro_batch_size`, `log_every`, `checkpoint={"every_steps": 100}`, ... (`vfm
            stages clip.train` lists them). `grad_checkpointing` needs a model with `set_grad_checkpointing`, as in timm
            and open_clip. Several processes must be started by torchrun.

    Returns:
        The trained model and its metrics.

    Raises:
        UserError: If a setting is wrong, a sample or the loss has a wrong form or is not finite, or the folder holds
            another training run.
    """
    check_not_a_worker("vfm.fit")
    trained = _task(task, loss, seed, weight)
    size = batch_size(data, global_batch_size, settings.get("micro_batch_size"))
    arguments: dict[str, Any] = {"steps": steps, "lr": lr, "seed": seed}
    if size is not None:
        arguments["global_batch_size"] = size
    config = _config({**settings, **arguments}, {"device": device, "workers": workers})
    if config.grad_checkpointing:
        _recompute_activations(_module(trained))
    inputs = {str(ref): Path(ref) for _, ref in refs(config)}
    shown = listener(progress and is_main())
    with open_folder(folder) as path, shown_by(shown, "fit", path, path / CHECKPOINTS, inputs) as ctx:
        batches, facts = training_data(data, config, ctx.log)
        weights = shapes_of(trained.state_dict())
        frozen = {name: True for name, param in trained.named_parameters() if not param.requires_grad}
        record: dict[str, Any] = {
            "settings": decisive_settings(config),
            "weights": weights,
            "frozen": frozen,
            "data": facts,
            START: weights_hash(trained.state_dict()),
        }
        with recorded(path, record, ctx.log) if is_main() else nullcontext(record) as before:
            if is_main():
                _check_start(path, before[START], record[START], _module(trained), ctx.warn)
            with _restored_generators(seed):
                run_loop(trained, batches, config, ctx)
            model = _module(trained).eval()
            if is_main():
                save_state_dict(model.state_dict(), path / WEIGHTS)
        metrics = read_json_lines(path / METRICS_FILE) if is_main() else []
    return Fit(model, metrics, None if folder is None else Path(folder), ctx.bad)


@contextmanager
def _restored_generators(seed: int) -> Iterator[None]:
    """Restore the caller's random generators after the block. The loop seeds them.

    Otherwise models that are created after two runs would be equal.
    """
    is_used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = [torch.cuda.current_device()] if is_used else []
    with seeded(seed), torch.random.fork_rng(gpus):
        yield


def _module(trained: Task[Any]) -> nn.Module:
    if isinstance(trained, ModuleTask):
        return trained.model
    return trained


def _recompute_activations(model: nn.Module) -> None:
    """Make a model recompute its activations in the backward pass.

    Raises:
        UserError: If the model does not support it.
    """
    name = type(model).__name__
    if not callable(getattr(model, "set_grad_checkpointing", None)):
        raise UserError(
            f"fit: grad_checkpointing: {name} has no set_grad_checkpointing(), as timm's models have it; call"
            " torch.utils.checkpoint in its forward instead"
        )
    try:
        model.set_grad_checkpointing()  # type: ignore[operator]
    except AssertionError as error:  # raised by a timm model that does not support it
        raise UserError(f"fit: grad_checkpointing: {name}: {error or 'not supported'}") from None


def _check_start(path: Path, before: str, start: str, model: nn.Module, warn: Callable[[str], None]) -> None:
    """Check that the run in the folder started from the model's weights, or that it produced them.

    An unfinished run resumes with a warning, since a module is often made without a seed.

    Raises:
        UserError: If the run is finished and started from other weights.
    """
    if before == start:
        return
    if not (path / WEIGHTS).is_file():
        warn(f"{path}: this training began with other initial weights; it resumes from its checkpoint")
    elif weights_hash(model.state_dict()) != weights_hash(load_state_dict(path / WEIGHTS)):
        raise UserError(
            f"{path}: holds a finished training with other initial weights: call torch.manual_seed before creating the"
            " module, choose another folder, or delete this one"
        )


def _task(
    task: Task[Any] | nn.Module, loss: LossFunction | None, seed: int, weight: WeightFunction | None
) -> Task[Any]:
    if isinstance(task, nn.Module) and not any(param.requires_grad for param in task.parameters()):
        raise UserError(f"fit: {type(task).__name__} has no parameter to train: none has requires_grad")
    if isinstance(task, Task):
        if loss is not None or weight is not None:
            raise UserError(f"fit: {type(task).__name__} is a Task, which has its own loss: leave out loss and weight")
        return task
    if not isinstance(task, nn.Module):
        raise UserError(f"fit: expected a module or a vfm.train.Task, got a {type(task).__name__}")
    if not callable(loss):
        raise UserError(f"fit: {type(task).__name__} is not a vfm.train.Task: give loss, a function of (model, batch)")
    return ModuleTask(task, loss, seed, weight)


def _config(settings: Mapping[str, Any], runtime: Mapping[str, Any]) -> Settings:
    """Build the configuration of the run.

    Args:
        settings: Its fields.
        runtime: Default fields of `runtime`. The settings override them.

    Raises:
        UserError: If a setting is unknown or wrong, one line each.
    """
    for name in NO_SETTINGS:
        if name in settings:
            raise UserError(f"fit: {name}: this setting is only for recipes")
    runtime_settings = settings.get("runtime", {})
    merged = runtime_settings
    if isinstance(runtime_settings, Mapping):
        merged = {**runtime, **runtime_settings}
    try:
        config = Settings.model_validate({**settings, "kind": "vfm.fit", "name": "fit", "runtime": merged})
    except ValidationError as error:
        lines = [": ".join(("fit", *_key(location), line)) for location, line in error_lines(error, Settings)]
        raise UserError("\n".join(lines)) from None
    processes = config.runtime.processes
    if processes > 1:
        start = f"start it with torchrun --nproc-per-node={processes}"
        raise UserError(
            f"fit: runtime.processes: a script does not start processes, {start}: expected 1, got {processes}"
        )
    return config


def _key(location: tuple[str | int, ...]) -> list[str]:
    if not location:
        return []
    return [".".join(map(str, location))]
