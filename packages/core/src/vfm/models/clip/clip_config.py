"""Look up a CLIP model's configuration by name or in a folder, in open_clip's form, and check it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip

from vfm.base import UserError, did_you_mean
from vfm.models import small_models  # noqa: F401  (registers the small architectures)
from vfm.models.weights import find_weights
from vfm.storage.store_files import read_record

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# The file that vfm writes, and the names used on the hub.
WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# A damaged number would build layers without end, or fill the memory.
MAX_LAYERS = 1_000
MAX_SIZE = 4_000_000
# Allowed options of a configuration's tokenizer. Any other option would reach a loader of transformers, some of whose
# arguments run code (`trust_remote_code`) or read other files (`bpe_path`, `cache_dir`).
TOKENIZER_OPTIONS: Mapping[str, type] = {
    "clean": str,
    "context_length": int,
    "language": str,
    "reduction_mask": str,
    "strip_sep_token": bool,
}

_UNSUPPORTED = re.compile(r"EVA.?CLIP.?(8B|18B)", re.IGNORECASE)


def unsupported_eva_clip(where: str, size: str) -> UserError:
    """Create the error for the two largest EVA-CLIP models. Neither timm nor open_clip has them."""
    return UserError(
        f"{where}: neither timm nor open_clip has the architecture of EVA-CLIP-{size.upper()} (RMSNorm, no biases in"
        " attention); the largest that can be loaded is EVA02-E-14-plus"
    )


def get_clip_config(name: str) -> dict[str, Any]:
    """Look up open_clip's configuration of a model name.

    Raises:
        UserError: If open_clip does not have it, or it cannot be fetched.
    """
    unsupported = _UNSUPPORTED.search(name)
    if unsupported:
        raise unsupported_eva_clip(name, unsupported[1])
    try:
        # open_clip writes ViT-B/32 as ViT-B-32. A slash after a colon is part of a hub's name or a path.
        config = open_clip.get_model_config(name if ":" in name else name.replace("/", "-"))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"CLIP model {name!r}: {str(error).splitlines()[0]}") from None
    if config is None:
        raise UserError(f"CLIP model {name!r} is not in open_clip{did_you_mean(name, open_clip.list_models())}")
    return dict(config)


def read_clip_config(folder: Path) -> dict[str, Any]:
    """Read `open_clip_config.json`.

    Raises:
        UserError: If the file is missing, is not JSON, or has no `model_cfg`.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder}: no CLIP checkpoint ({CONFIG_FILE} is missing)")
    return read_record(file, "model_cfg")


def clip_weights_file(folder: Path) -> Path:
    """Find the weights file of a folder in open_clip's layout.

    Raises:
        UserError: If the folder has none.
    """
    return find_weights(folder, WEIGHTS_FILES)


def check_keys(config: Mapping[str, Any], name: str) -> None:
    """Check that a configuration has all required parts and no key that open_clip would not accept.

    Raises:
        UserError: If a part is missing, or a key or value is not accepted. The message names the first.
    """
    model = f"CLIP model {name!r}"
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in config:
            raise UserError(f"{model}: its configuration needs {key!r}")
    # From the installed version of open_clip, which may know more keys than the one that this was written with.
    known = {
        *inspect.signature(open_clip.CLIP).parameters,
        *inspect.signature(open_clip.CoCa).parameters,
        "custom_text",
    }
    _check_known(config, known, f"{model}: ")
    for part, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        if not isinstance(config[part], Mapping):
            raise UserError(f"{model}: {part}: expected a mapping of open_clip's keys to values, got {config[part]!r}")
        fields = {field.name for field in dataclasses.fields(kind)}
        _check_known(config[part], fields, f"{model}: {part}.")
        for key, value in config[part].items():
            limit = MAX_LAYERS if key == "layers" else MAX_SIZE
            if isinstance(value, int | float) and not abs(value) <= limit:
                raise UserError(f"{model}: {part}.{key}: expected at most {limit:,}, got {value}")
    check_tokenizer_options(config["text_cfg"], name)


def _check_known(keys: Iterable[str], known: set[str], start: str) -> None:
    for key in keys:
        if key not in known:
            raise UserError(f"{start}{key}: unknown key{did_you_mean(key, known)}")


def check_tokenizer_options(text: Mapping[str, Any], name: str) -> None:
    """Check the `tokenizer_kwargs` of a text tower's configuration, whose author need not be trusted.

    Raises:
        UserError: If an option is not in `TOKENIZER_OPTIONS`, or has another type.
    """
    options = text.get("tokenizer_kwargs") or {}
    location = f"CLIP model {name!r}: text_cfg.tokenizer_kwargs"
    if not isinstance(options, Mapping):
        raise UserError(f"{location}: expected a mapping, got {options!r}")
    for key, value in options.items():
        if key not in TOKENIZER_OPTIONS:
            raise UserError(f"{location}.{key}: not allowed; allowed: {', '.join(TOKENIZER_OPTIONS)}")
        if type(value) is not TOKENIZER_OPTIONS[key]:
            raise UserError(f"{location}.{key}: expected {TOKENIZER_OPTIONS[key].__name__}, got {value!r}")
