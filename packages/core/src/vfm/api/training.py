"""Train any model on any torch Dataset or DataLoader, with the loop of the recipes. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from pydantic import ValidationError
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from vfm.api.paths import AnyPath
from vfm.api.progress import listener, shown_by
from vfm.api.results import Results, as_table
from vfm.config import UserError, error_lines
from vfm.data.torch_dataset import dataset_data
from vfm.data.torch_loader import LoaderData
from vfm.flow.listeners import number
from vfm.flow.locks import locked
from vfm.incidental import decisive_settings
from vfm.integrity import read_sealed, seal
from vfm.interfaces import Training
from vfm.models import save_state_dict
from vfm.stage import Context, refs
from vfm.store_files import read_json_lines
from vfm.train import METRICS_FILE, Data, Task, is_main
from vfm.train import fit as run_loop
from vfm.train.module_task import LossFunction, ModuleTask

RECORD, CHECKPOINTS, WEIGHTS = "training.json", "checkpoints", "model.safetensors"
NO_SETTINGS = ("kind", "name", "evaluation", "samples_seen")  # fields of a training that a call does not have


class Settings(Training):
    """The configuration of a training by `fit`."""

    moved: ClassVar[Mapping[str, str]] = {**Training.moved, "batch_size": "global_batch_size"}


@dataclass(frozen=True, repr=False)
class Fit(Results):
    """A finished training.

    Attributes:
        model: the trained module, the one that was given, in evaluation mode.
        metrics: what was logged every `log_every` steps, as in `metrics.jsonl`.
        folder: with checkpoints, metrics and `model.safetensors`; None if none was named.
    """

    model: nn.Module
    metrics: list[dict[str, Any]]
    folder: Path | None

    @property
    def loss(self) -> float:
        """Mean training loss since the last but one log line."""
        return float(self.metrics[-1]["train/loss"])

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"trained {self.metrics[-1]['step']:,} steps; loss {number(self.loss)}"

    def table(self) -> Any:
        """Return an Arrow table with the columns step, samples, train/loss, train/lr and the other metrics."""
        return as_table([{key: value for key, value in row.items() if key != "split"} for row in self.metrics])


def fit(
    task: Task[Any] | nn.Module,
    data: Any,
    *,
    steps: int,
    loss: LossFunction | None = None,
    folder: AnyPath | None = None,
    global_batch_size: int | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Fit:
    """Train a model on a torch Dataset or DataLoader; the same call again resumes after a crash.

    With a Dataset the samples are drawn in our order, and all random draws of a sample are seeded by (seed, step,
    sample), so that a resumed training equals an uninterrupted one bit for bit on the CPU. With a DataLoader, a resume
    reads the batches so far again.

    Args:
        task: a module together with `loss`, or a `vfm.train.Task`, which has its own. It is trained in place.
        data: a map-style Dataset (or list) of dicts, tuples such as (image, label), or dataclasses; their tensors,
            arrays, numbers and PIL images are stacked, (B, ...), and texts are lists. Or a DataLoader, or another
            iterable of such batches that can be iterated again.
        steps: optimizer steps; the data are repeated as often as needed.
        loss: `loss(model, batch)` returns a scalar tensor, or a scalar and other metrics by name.
        folder: for checkpoints, metrics and the trained weights (`model.safetensors`); None: nothing is kept.
        global_batch_size: samples per step, by default 128; a DataLoader has its own.
        lr: peak learning rate.
        seed: seed of the order and of all random draws.
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: processes that read a Dataset; 0: this thread.
        progress: show a progress bar and messages.
        settings: other fields of a training as in a recipe: `optimizer={"type": "sgd"}`, `schedule`, `ema_decay`,
            `precision`, `micro_batch_size`, `log_every`, `checkpoint={"every_steps": 100}`, ... (`vfm stages
            clip.train` lists them).

    Returns:
        The trained model and its metrics.

    Raises:
        UserError: a setting is wrong; a sample or the loss is not as expected or not finite; or the folder holds
            another training.
    """
    task = _task(task, loss)
    from_loader = _is_loader(data)
    batch_size = _batch_size(data, global_batch_size, settings) if from_loader else global_batch_size
    config = _config(
        {
            **settings,
            "steps": steps,
            "lr": lr,
            "seed": seed,
            **({} if batch_size is None else {"global_batch_size": batch_size}),
            "runtime": {"device": device, "workers": workers, **settings.get("runtime", {})},
        }
    )
    inputs = {str(ref): Path(ref) for _, ref in refs(config)}
    with _opened(folder) as place, shown_by(listener(progress), "fit", place, place / CHECKPOINTS, inputs) as ctx:
        batches: Data[Any] = LoaderData(data, config.seed, ctx.log)
        layout: dict[str, str] = {}
        if not from_loader:
            batches, layout = dataset_data(
                data, seed=config.seed, global_batch_size=config.global_batch_size, workers=config.runtime.num_workers
            )
        with _claimed(place, ctx) if folder is not None and is_main() else nullcontext():
            if is_main():
                _check_record(
                    place, config, task, {"type": type(data).__name__, "length": _length(data), "sample": layout}
                )
            run_loop(task, batches, config, ctx)
            model = (task.model if isinstance(task, ModuleTask) else task).eval()
            if is_main():
                save_state_dict(model.state_dict(), place / WEIGHTS)
        metrics = read_json_lines(place / METRICS_FILE) if is_main() else []
    return Fit(model, metrics, None if folder is None else place)


def _task(task: Task[Any] | nn.Module, loss: LossFunction | None) -> Task[Any]:
    if isinstance(task, Task):
        if loss is not None:
            raise UserError(f"fit: {type(task).__name__} is a Task, which has its own loss: leave out loss")
        return task
    if not isinstance(task, nn.Module):
        raise UserError(f"fit: expected a module or a vfm.train.Task, got a {type(task).__name__}")
    if not callable(loss):
        raise UserError(f"fit: {type(task).__name__} is no vfm.train.Task: give loss, a function of (model, batch)")
    return ModuleTask(task, loss)


def _is_loader(data: Any) -> bool:
    if isinstance(data, DataLoader):
        return True
    if isinstance(data, IterableDataset):
        raise UserError(f"fit: {type(data).__name__} is an IterableDataset: give a DataLoader over it")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | Mapping):
        return False
    if isinstance(data, Iterable) and not isinstance(data, Iterator | str | Mapping):
        return True
    raise UserError(f"fit: expected a Dataset, a list or a DataLoader, got a {type(data).__name__}")


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a DataLoader over an IterableDataset
        return None


def _batch_size(loader: Any, given: int | None, settings: Mapping[str, Any]) -> int | None:
    """Return the batch size of a DataLoader, or the given one where it has none."""
    own = getattr(loader, "batch_size", None)
    if given is not None and isinstance(own, int) and own != given:
        raise UserError(f"fit: global_batch_size: the DataLoader's batches have {own} samples, got {given}")
    if settings.get("micro_batch_size"):
        raise UserError("fit: micro_batch_size: a DataLoader's batches are taken whole; give its Dataset instead")
    return own if isinstance(own, int) else given


def _config(settings: Mapping[str, Any]) -> Settings:
    """Return the configuration of the training.

    Raises:
        UserError: a setting is unknown or wrong, one line each.
    """
    if wrong := [name for name in NO_SETTINGS if name in settings]:
        raise UserError(f"fit: {wrong[0]}: only a training in a recipe has this setting")
    try:
        return Settings.model_validate({**settings, "kind": "vfm.fit", "name": "fit"})
    except ValidationError as error:
        lines = [f"fit: {'.'.join(map(str, place))}: {line}" for place, line in error_lines(error, Settings)]
        raise UserError("\n".join(lines).replace("fit: : ", "fit: ")) from None


@contextmanager
def _opened(folder: AnyPath | None) -> Iterator[Path]:
    """Yield the user's folder, or a temporary one."""
    if folder is None:
        with TemporaryDirectory(prefix="vfm-fit-") as temporary:
            yield Path(temporary)
        return
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise UserError(f"{place}: expected a folder, got a file")
    place.mkdir(parents=True, exist_ok=True)
    yield place


@contextmanager
def _claimed(place: Path, ctx: Context) -> Iterator[None]:
    """Hold the folder's lock: two trainings must not write the same checkpoints."""
    with locked(place / ".lock", str(place), ctx.log):
        yield


def _check_record(place: Path, config: Training, task: Task[Any], data: Mapping[str, Any]) -> None:
    """Write what decides the result into the folder, or compare it with what is there.

    Raises:
        UserError: the folder holds a training with another setting, model or data.
    """
    weights = {name: list(value.shape) for name, value in task.state_dict().items()}
    record = json.loads(json.dumps({"settings": decisive_settings(config), "weights": weights, "data": data}))
    file = place / RECORD
    if not file.is_file():
        file.write_bytes(seal(record))
        return
    before, now = dict(_flat(read_sealed(file))), dict(_flat(record))
    changed = next((key for key in (*before, *now) if before.get(key) != now.get(key)), None)
    if changed:
        raise UserError(
            f"{place}: holds another training: {changed} was {before.get(changed)}, is {now.get(changed)};"
            " choose another folder, or delete this one"
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else name)
    else:
        yield key, value
