"""State dicts on disk: written as safetensors, read from safetensors or from pickles that hold nothing but tensors."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vfm.config import UserError


def save_state_dict(state_dict: Mapping[str, Tensor], file: Path) -> None:
    """Writes tensors as safetensors. Copies make them contiguous and unshared, as the format demands.

    Raises:
        OSError: a full disk, told as what it is, which safetensors itself does not do.
    """
    tensors = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            code = int(found[1])
            raise OSError(code, os.strerror(code), str(file)) from None
        raise


def load_state_dict(file: str | Path, *, ema: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, whatever training wrapped around them.

    Args:
        file: `.safetensors`, or a `torch.save` file (read with `weights_only`, so that nothing in it can run).
            TorchScript archives hold a program and are refused, but for those that OpenAI published (known by hash).
        ema: take `model_ema` rather than `model` where the file holds both.

    Raises:
        UserError: the file is missing, damaged, holds other objects than tensors, or no tensors at all.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint file")
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
    except UnpicklingError:
        raise UserError(f"{file}: holds more than tensors, so it is not read; save its state dict alone") from None
    except (SafetensorError, RuntimeError, EOFError, KeyError, OSError) as error:
        line = (str(error).strip() or "it ends too early").splitlines()[0]
        raise UserError(f"{file}: not readable as a checkpoint: {line}") from None
    tensors = {key: value for key, value in _unwrap(content, ema).items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{file}: no tensors in it")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _load_pickle(file: Path) -> Any:
    if not _is_torchscript(file):
        with torch.serialization.safe_globals([argparse.Namespace]):  # the `args` that official trainers save beside
            return torch.load(file, map_location="cpu", weights_only=True)
    if _sha256(file) not in _published_by_openai():
        raise UserError(f"{file}: a TorchScript archive, which is a program; save its state dict alone")
    script = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    return dict(script.state_dict())


def _is_torchscript(file: Path) -> bool:
    """Whether the file is an archive with a program's constants in it, as torch itself tells it."""
    try:
        with ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except BadZipFile:
        return False


def _published_by_openai() -> set[str]:
    """Hashes of the archives that OpenAI published; they stand in the addresses that open_clip lists."""
    urls = (open_clip.get_pretrained_url(name, "openai") for name in open_clip.list_openai_models())
    return {url.split("/")[-2] for url in urls if url.count("/") > 1}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unwrap(content: Any, ema: bool) -> dict[str, Any]:
    """The innermost dictionary under the names that open_clip, timm, EVA and DeepSpeed wrap a state dict in."""
    wrappers = ("model_ema", "state_dict_ema", "model", "module", "state_dict")
    for name in wrappers if ema else wrappers[2:]:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            return _unwrap(content[name], ema)
    return content if isinstance(content, dict) else {}
