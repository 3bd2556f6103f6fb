"""Suggest a setting for an unknown key, by the words of other tools and by its spelling."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel


def _unchanged(value: object) -> object:
    if isinstance(value, (int, float, str)):
        return value
    return None


def _no_value(value: object) -> object:
    return None


def _switch(precision: str) -> Callable[[object], object]:
    """Translate a switch for mixed precision to the name of a precision."""
    return lambda value: {"True": precision, "False": "fp32"}.get(str(value))


@dataclass(frozen=True)
class Meaning:
    """A setting of vfm and its names in other tools.

    Attributes:
        keys: The setting's keys, dotted if it is in a group. The first that a configuration has is suggested.
        words: Its names elsewhere.
        value: Translates a value. Values without a translation become None.
        note: What differs from the other tools.
    """

    keys: Sequence[str]
    words: str
    value: Callable[[object], object] = _unchanged
    note: str = ""


PRECISION = ["precision"]
WARMUP = ["schedule.warmup_steps", "warmup_steps"]
WORKERS = ["workers", "runtime.workers"]
MEANINGS = (
    Meaning(
        ["global_batch_size"],
        "batch_size batch bs train_batch_size per_device_train_batch_size",
        note=" (over all processes)",
    ),
    Meaning(["batch_size", "micro_batch_size"], "batch_size batch bs"),  # of evaluations
    Meaning(["micro_batch_size"], "accum_freq grad_accum_steps gradient_accumulation_steps", _no_value),
    Meaning(["lr"], "learning_rate base_lr peak_lr max_lr"),
    Meaning(["schedule.min_lr"], "lr_min eta_min"),
    Meaning(["schedule"], "scheduler sched lr_scheduler lr_schedule", _no_value),
    Meaning(WARMUP, "warmup warmup_steps warmup_iters num_warmup_steps warmup_updates"),
    Meaning(WARMUP, "warmup_epochs warmup_ratio", _no_value, " (in steps)"),
    Meaning(["optimizer"], "opt optim", _no_value),
    Meaning(["optimizer.weight_decay", "weight_decay"], "wd weight_decay"),
    Meaning(
        ["optimizer.grad_clip_norm", "grad_clip_norm"],
        "clip_grad grad_clip clip_grad_norm max_grad_norm",
    ),
    Meaning(["steps"], "max_steps num_steps iterations num_iterations iters max_iters train_steps num_train_steps"),
    Meaning(["epochs"], "num_epochs max_epochs train_epochs num_train_epochs n_epochs"),
    Meaning(PRECISION, "amp mixed_precision use_amp", _switch("auto")),
    Meaning(PRECISION, "fp16 half", _switch("amp_fp16")),
    Meaning(PRECISION, "bf16", _switch("amp_bf16")),
    Meaning(["grad_checkpointing"], "gradient_checkpointing grad_checkpoint use_checkpoint activation_checkpointing"),
    Meaning(["ema_decay"], "ema model_ema_decay", _no_value),
    Meaning(WORKERS, "workers num_workers dataloader_num_workers n_workers"),
    Meaning(["processes", "runtime.processes"], "gpus num_gpus nproc nproc_per_node world_size devices"),
    Meaning(["log_every"], "log_interval log_freq log_every_n_steps logging_steps print_freq"),
    Meaning(["checkpoint.every_steps", "every_steps"], "save_every save_interval save_steps checkpoint_every"),
    Meaning(["evaluation.every_steps"], "eval_interval eval_steps val_every val_frequency", _no_value),
    Meaning(["image_size"], "img_size input_size resolution"),
    Meaning(["seed"], "random_seed manual_seed rng_seed"),
)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest a similar word, such as `; did you mean 'steps'?`, or list the known words if they are few."""
    known = sorted(set(known))
    # difflib's default, which allows two mistakes in a word of usual length.
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    if 0 < len(known) <= 30:
        return f"; known: {', '.join(known)}"
    return ""


def unknown_key(key: str, value: object, known: Sequence[str], moved: Mapping[str, str] | None = None) -> str:
    """Write the message about an unknown key, with the most likely key and, if it can be translated, the value.

    Args:
        key: The unknown key.
        value: Its value.
        known: The keys of the configuration, dotted for a group's fields.
        moved: Earlier keys and where they are now.
    """
    if moved and key in moved:
        return f"unknown key; did you mean '{moved[key]}'?"
    word = key.replace("-", "_").lower()
    for meaning in MEANINGS:
        if word not in meaning.words.split():
            continue
        for name in meaning.keys:
            if name in known:
                return f"unknown key; did you mean '{_setting(name, meaning.value(value))}'{meaning.note}?"
    in_groups = [name for name in known if name.rsplit(".", 1)[-1] == key != "type"]
    if in_groups:
        return f"unknown key; did you mean '{_setting(in_groups[0], _unchanged(value))}'?"
    return "unknown key" + did_you_mean(key, [name for name in known if "." not in name])


def _setting(name: str, value: object) -> str:
    """Write a setting as in a recipe, or only its name if the value is None."""
    if value is None:
        return name
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    group, _, field = name.rpartition(".")
    if group:
        return f"{group}: {{{field}: {shown}}}"
    return f"{field}: {shown}"


def dotted_keys(model: type[BaseModel], names: Iterable[str]) -> list[str]:
    """List keys of a configuration, followed by the fields of its groups as `group.field`."""
    names = list(names)
    keys = dict.fromkeys(names)
    for name in names:
        field = model.model_fields.get(name)
        if field and isinstance(field.default, BaseModel):
            for group in (type(field.default), *_choices(field.annotation)):
                keys |= dict.fromkeys(f"{name}.{inner}" for inner in group.model_fields)
    return list(keys)


def _choices(annotation: object) -> Iterator[type[BaseModel]]:
    choices: Mapping[str, Any] = getattr(first_model(annotation), "choices", {})
    yield from choices.values()


def first_model(annotation: object) -> type[BaseModel] | None:
    """Find the first configuration in a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        model = first_model(part)
        if model:
            return model
    return None
