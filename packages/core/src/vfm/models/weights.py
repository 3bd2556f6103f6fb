"""State dicts on disk: written as safetensors, read from safetensors or from pickles that hold nothing but tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vfm.config import UserError


def save_state_dict(state_dict: Mapping[str, Tensor], file: Path) -> None:
    """Writes tensors as safetensors. Copies make them contiguous and unshared, as the format demands."""
    tensors = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


def load_state_dict(file: str | Path, *, ema: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, whatever training wrapped around them.

    Args:
        file: `.safetensors`, or a `torch.save` file (read with `weights_only`, so that nothing in it can run), also
            OpenAI's TorchScript archives.
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
    except (SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{file}: not readable as a checkpoint: {str(error).splitlines()[0]}") from None
    tensors = {key: value for key, value in _unwrap(content, ema).items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{file}: no tensors in it")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _load_pickle(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
    # OpenAI published its models as TorchScript archives; their code is compiled, not run, by being loaded.
    script = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    sizes = ("input_resolution", "context_length", "vocab_size")
    return {key: value for key, value in script.state_dict().items() if key not in sizes}


def _unwrap(content: Any, ema: bool) -> dict[str, Any]:
    """The innermost dictionary under the names that open_clip, timm, EVA and DeepSpeed wrap a state dict in."""
    wrappers = ("model_ema", "state_dict_ema", "model", "module", "state_dict")
    for name in wrappers if ema else wrappers[2:]:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            return _unwrap(content[name], ema)
    return content if isinstance(content, dict) else {}
