"""Write state dicts as safetensors, and read them from safetensors or from pickles that hold only tensors."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from tarfile import is_tarfile
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vfm.base import UserError
from vfm.storage.store_files import read_record

# Objects that trainers save next to tensors: their `args`, and rates and counts that are numpy's numbers. Files of
# numpy 1 have an older name of the same function.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_ALLOWED_OBJECTS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
]


INDEX_SUFFIX = ".index.json"  # of a file that lists the shards of weights, as transformers writes


def find_weights(folder: Path, names: Sequence[str]) -> Path:
    """Find the first of the named files that a folder has.

    Raises:
        UserError: If the folder has none of them.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights (looked for {', '.join(names)})")


def weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """Compute the sha256 of tensors with their names, types and shapes, independent of their device."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        content: Any = value.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def save_state_dict(
    state_dict: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] = MappingProxyType({"format": "pt"})
) -> None:
    """Save tensors as safetensors.

    Args:
        state_dict: Tensors by name.
        file: File to write.
        metadata: Texts in the header.

    Raises:
        OSError: If the file cannot be written, e.g. on a full disk.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()  # addresses
    for key, value in state_dict.items():
        tensor = value.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        # safetensors refuses tensors that share memory. Copying all others too would double a checkpoint's memory.
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        storages.add(storage.data_ptr())
        tensors[key] = tensor
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    permissions = file.stat().st_mode  # as the umask says; only the owner could read safetensors' own file
    try:
        save_file(tensors, file, metadata=dict(metadata))
        file.chmod(permissions)
    except SafetensorError as error:
        # safetensors hides the cause in its message; callers handle OSError (a full disk) by its code.
        match = re.search(r"os error (\d+)", str(error))
        if not match:
            raise
        code = int(match[1])
        raise OSError(code, os.strerror(code), str(file)) from None


def load_state_dict(file: str | Path, *, ema: bool = True) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint file, without the dictionaries that trainers wrap around them.

    Args:
        file: `.safetensors`, or a `torch.save` file, read with `weights_only` so that no code in it can run, or the
            index of several such files in its folder.
            TorchScript archives contain a program and are refused, except OpenAI's own (known by hash).
        ema: Prefer averaged weights (`model_ema`) to `model` if the file has both.

    Raises:
        UserError: If the file is missing or damaged, holds objects other than tensors, or has no tensors.
    """
    file = Path(file)
    if file.name.endswith(INDEX_SUFFIX):
        weights = {}
        for shard in weights_shards(file):
            weights.update(load_state_dict(shard, ema=ema))
        return weights
    return tensors_of(read_checkpoint(file), file, ema=ema)


def read_checkpoint(file: Path) -> Any:
    """Read everything in a checkpoint file, including other contents that trainers save next to tensors.

    Raises:
        UserError: If the file is missing or damaged, or holds objects that could run code.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint file")
    if file.suffix == ".tar" and is_tarfile(file):
        raise UserError(f"{file}: expected a checkpoint, got a tar archive, such as a shard of samples")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return _load_pickle(file)
    except UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)|got <class '([\w.]+)'>", str(error))
        first = f" (the first: {match[1] or match[2]})" if match else ""
        raise UserError(
            f"{file}: holds objects other than tensors{first}, which could run code; save its state dict only"
        ) from None
    except UserError:
        raise
    except Exception as error:  # on damaged bytes, torch and safetensors raise errors of many types
        line = (str(error).strip() or "the file is truncated").splitlines()[0]
        raise UserError(f"{file}: not readable as a checkpoint: {line}") from None


def tensors_of(content: Any, file: Path, *, ema: bool = True) -> dict[str, Tensor]:
    """Find the tensors in a checkpoint, without the prefixes that wrappers add to their names.

    Args:
        content: Content of the file.
        file: Its path, for errors.
        ema: Prefer averaged weights.

    Raises:
        UserError: If it has no tensors.
    """
    tensors = {key: value for key, value in _unwrap(content, ema).items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{file}: holds no tensors")
    # Added by DistributedDataParallel, by torch.compile inside it, and for the attribute of a Lightning module.
    for wrapper in ("module.", "_orig_mod.", "model."):
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def weights_shards(index: Path) -> list[Path]:
    """List the files that an index of weights names. They are in its folder.

    Raises:
        UserError: If the index is damaged, or names a file in another folder.
    """
    names = read_record(index, "weight_map")["weight_map"]
    names = sorted(set(names.values())) if isinstance(names, Mapping) else [names]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: weight_map: expected names of files in its folder, got {name!r}")
    return list(map(index.parent.joinpath, names))


def check_finite_weights(state_dict: Mapping[str, Tensor], where: object) -> None:
    """Check that no weight is NaN or infinite.

    Args:
        state_dict: Tensors by name.
        where: Their origin, for the error.

    Raises:
        UserError: If a tensor is not finite. The message names the first.
    """
    wrong = [key for key, value in state_dict.items() if not torch.isfinite(value).all()]
    if wrong:
        more = f" and {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
        raise UserError(f"{where}: expected finite weights, got NaN or infinity in {wrong[0]}{more}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """List the shapes of tensors by name."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _load_pickle(file: Path) -> Any:
    if not _is_torchscript(file):
        with torch.serialization.safe_globals(_ALLOWED_OBJECTS):
            return torch.load(file, map_location="cpu", weights_only=True)
    if _sha256(file) not in _published_by_openai():
        raise UserError(f"{file}: a TorchScript archive, which could run code; save its state dict only")
    script = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    return dict(script.state_dict())


def _is_torchscript(file: Path) -> bool:
    """Check whether the file is a zip archive with a program's constants, by the same test as in torch."""
    try:
        with ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except BadZipFile:
        return False


def _published_by_openai() -> set[str]:
    """Collect the SHA-256 hashes of OpenAI's archives. They are part of the URLs that open_clip lists."""
    hashes = set()
    for name in open_clip.list_openai_models():
        url = open_clip.get_pretrained_url(name, "openai")
        if url.count("/") > 1:
            hashes.add(url.split("/")[-2])
    return hashes


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unwrap(content: Any, ema: bool) -> dict[str, Any]:
    """Unwrap the innermost dictionary under the names that open_clip, timm, EVA and DeepSpeed use for a state dict."""
    wrappers = ("model_ema", "state_dict_ema", "model", "module", "state_dict")
    names = wrappers if ema else wrappers[2:]
    for name in names:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            return _unwrap(content[name], ema)
    if isinstance(content, dict):
        return content
    return {}
