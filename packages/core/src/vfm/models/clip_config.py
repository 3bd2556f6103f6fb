"""A CLIP model's configuration in open_clip's form: by name, from a folder, and checked."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip

from vfm.config import UserError, did_you_mean
from vfm.models import presets  # registers the small architectures

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
# Ours, and the names that the hub uses.
WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


_TOO_NEW = re.compile(r"EVA.?CLIP.?(8B|18B)", re.IGNORECASE)


def too_new(where: str, size: str) -> UserError:
    """What there is to say of the two EVA-CLIP models that nobody's registry has, asked for by a name or a file."""
    return UserError(
        f"{where}: neither timm nor open_clip has the architecture of EVA-CLIP-{size.upper()} (RMSNorm, no biases in"
        " attention); the largest that loads is EVA02-E-14-plus"
    )


def clip_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a name.

    Raises:
        UserError: open_clip does not know it, or it cannot be fetched.
    """
    if found := _TOO_NEW.search(name):
        raise too_new(name, found[1])
    try:
        config = open_clip.get_model_config(name.replace("/", "-") if ":" not in name else name)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"CLIP model {name!r}: {str(error).splitlines()[0]}") from None
    if config is None:
        raise UserError(
            f"CLIP model {name!r} is not one that open_clip knows{did_you_mean(name, open_clip.list_models())}"
        )
    return dict(config)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `open_clip_config.json`."""
    file = folder / CONFIG_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no CLIP checkpoint here ({CONFIG_FILE} is missing)") from None
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(record, dict) or "model_cfg" not in record:
        raise UserError(f"{file}: has no 'model_cfg'")
    return record


def weights_file(folder: Path) -> Path:
    """The weights in a folder of open_clip's layout.

    Raises:
        UserError: there are none.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights here (looked for {', '.join(WEIGHTS_FILES)})")


def check_keys(config: Mapping[str, Any], name: str) -> None:
    """Refuses a configuration with missing parts or with keys that open_clip does not know.

    Raises:
        UserError: the first such key.
    """
    what = f"CLIP model {name!r}"
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in config:
            raise UserError(f"{what}: its configuration needs {key!r}")
    known = {
        *inspect.signature(open_clip.CLIP).parameters,
        *inspect.signature(open_clip.CoCa).parameters,
        "custom_text",
    }
    if other := next((key for key in config if key not in known), None):
        raise UserError(f"{what}: {other}: unknown key{did_you_mean(other, known)}")
    for part, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        if not isinstance(config[part], Mapping):
            raise UserError(f"{what}: {part} is {config[part]!r}; it should be a mapping of open_clip's keys to values")
        fields = {field.name for field in dataclasses.fields(kind)}
        if other := next((key for key in config[part] if key not in fields), None):
            raise UserError(f"{what}: {part}.{other}: unknown key{did_you_mean(other, fields)}")


__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "WEIGHTS_FILES",
    "check_keys",
    "clip_config",
    "presets",
    "read_config",
    "weights_file",
]
