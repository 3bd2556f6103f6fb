"""Weights that stay in their file until they are used, so that a process of a sharded training reads its rows only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PAGES = Path("/proc/self/smaps")  # Linux

_stays = ContextVar("_stays", default=False)


@dataclass(frozen=True)
class StoredWeight:
    """A weight in a safetensors file.

    Attributes:
        file: The file.
        name: The weight's name there.
        mapped: The weight's values. They are read from the file when they are used.
    """

    file: Path
    name: str
    mapped: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Read some rows."""
        rows: Tensor = _opened(self.file).get_slice(self.name)[start:stop]
        return rows


@contextmanager
def weights_stay_in_files() -> Iterator[None]:
    """Let models that are loaded within the context keep their weights in files that have exactly these weights."""
    token = _stays.set(True)
    try:
        yield
    finally:
        _stays.reset(token)


def map_weights(module: nn.Module, file: Path) -> bool:
    """Map the weights of a file into a module, if weights stay in files and it has the same names, shapes and types.

    Weights on the meta device stay there. Single numbers and buffers are copied.
    """
    if not _stays.get() or file.suffix != ".safetensors" or not _fits(module, file):
        return False
    mapped = load_file(file)
    map_tensors(module, {name: StoredWeight(file, name, tensor) for name, tensor in mapped.items()})
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in mapped:
                buffer.copy_(mapped[name])
        for name, param in module.named_parameters():
            if param.numel() == 1:
                param.copy_(mapped[name])
    return True


def map_tensors(module: nn.Module, stored: Mapping[str, StoredWeight]) -> set[str]:
    """Map tensors of files into the weights of a module, if weights stay in files.

    Args:
        module: The module. Its weights on the meta device stay there.
        stored: Tensors by the name of the weight. Those of another type, and single numbers, are not mapped.

    Returns:
        The names of the mapped weights.
    """
    names = set()
    if _stays.get():
        for name, param in module.named_parameters():
            where = stored.get(name)
            if where and param.numel() > 1 and where.mapped.dtype == param.dtype:
                if not param.is_meta:
                    param.data = where.mapped
                mark(param, where)
                names.add(name)
    return names


def mark(param: nn.Parameter, stored: StoredWeight | None) -> None:
    """Note that a weight is stored in a file, or forget it."""
    param._stored_weight = stored  # type: ignore[attr-defined]


def stored_weight(param: nn.Parameter) -> StoredWeight | None:
    """Look up from where a weight was loaded, if it was in a file."""
    stored: StoredWeight | None = getattr(param, "_stored_weight", None)
    return stored


def unchanged(params: Iterable[nn.Parameter]) -> list[bool]:
    """Check for each weight whether it still is what its file has. Writing to one makes all of its file changed."""
    written: dict[Path, bool] = {}
    same = []
    for param in params:
        where = stored_weight(param)
        if where and where.file not in written:
            written[where.file] = is_written(where.file)
        same.append(where is not None and not written[where.file] and _is_mapped(param, where))
    return same


def is_written(file: Path) -> bool:
    """Check whether this process has written to the mapped weights of a file, and so has copies of its pages.

    True where the system does not list a process's pages.
    """
    return not PAGES.exists() or any(kind in ("Anonymous:", "Swap:") and size for kind, size in mapped_pages(file))


def _is_mapped(param: nn.Parameter, stored: StoredWeight) -> bool:
    mapped = stored.mapped
    return (param.data_ptr(), param.shape, param.dtype) == (mapped.data_ptr(), mapped.shape, mapped.dtype)


def mapped_pages(file: Path) -> Iterator[tuple[str, int]]:
    """Yield each kind of memory of the maps of a file in this process, with its kilobytes."""
    path, is_of_file = str(file.resolve()), False
    for line in PAGES.read_text().splitlines():
        kind, *words = line.split(maxsplit=5)
        if not kind.endswith(":"):  # the head of a map: addresses and the path
            is_of_file = words[-1] == path
        elif is_of_file and words[-1] == "kB":
            yield kind, int(words[0])


def _fits(module: nn.Module, file: Path) -> bool:
    state = module.state_dict()
    opened = _opened(file)
    if set(opened.keys()) != set(state):
        return False
    for name, value in state.items():
        if value.is_floating_point():
            stored = opened.get_slice(name)
            if tuple(stored.get_shape()) != value.shape or TYPES.get(stored.get_dtype()) != value.dtype:
                return False
    return True


@lru_cache(maxsize=4)
def _opened(file: Path) -> Any:
    return safe_open(file, "pt")
