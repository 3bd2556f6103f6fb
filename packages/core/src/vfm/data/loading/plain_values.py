"""Convert the items of a torch Dataset to tensors in plain containers, and check that they can be stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vfm.base import UserError
from vfm.data.loading.transforms import to_tensor
from vfm.data.samples.images import to_rgb

EXPECTED = "expected tensors, arrays, numbers, images or texts, in a dict, a tuple or a dataclass"


def as_tensors(value: Any, where: str) -> Any:
    """Convert the arrays and numbers of a sample to tensors, and its images to float tensors (3, H, W) from 0 to 1.

    Raises:
        UserError: If the sample contains something else, such as None, or no tensor at all. `where` is its address.
    """
    sample = _converted(value, where)
    if not any(isinstance(part, Tensor) for _, part in leaves(sample)):
        raise UserError(f"{where}: {EXPECTED}, at least one tensor among them; got {value!r:.60}")
    return sample


def _converted(value: Any, where: str) -> Any:
    if isinstance(value, Tensor | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())  # a copy, because torch warns of read-only arrays
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        if isinstance(value, np.generic):
            value = value.item()
        return torch.tensor(value)
    if isinstance(value, Image.Image):
        if value.mode in ("I", "F"):  # depths or counts, which the conversion to RGB would cut off at 255
            raise UserError(f"{where}: expected an image of 8 or 16 bits, got one of mode {value.mode}; give an array")
        return to_tensor(to_rgb(value)).float() / 255
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return value  # texts: the captions of a sample, or a text of each sample of a batch
    if isinstance(value, Mapping):
        return {str(key): _converted(part, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_converted(part, f"{where}[{index}]") for index, part in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {}
        for field in dataclasses.fields(value):
            parts[field.name] = _converted(getattr(value, field.name), f"{where}.{field.name}")
        return type(value)(**parts)
    kind = "None" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{where}: {EXPECTED}; got {kind}")


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every tensor, text and list of texts in a converted sample or batch."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}[{key!r}]")
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    else:
        yield path, value


def layout_of(value: Any) -> dict[str, str]:
    """Describe the type and shape of each part of a converted sample by its path.

    Examples are `float32 (3, 32, 32)` and `text`.
    """
    layout = {}
    for path, part in leaves(value):
        layout[path] = "text"
        if isinstance(part, Tensor):
            layout[path] = f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
    return layout


def check_layout(value: Any, expected: Mapping[str, str], where: str, first: str) -> None:
    """Check that a sample has the parts, types and shapes of the first one, so that a batch can be stacked.

    Args:
        value: Converted sample.
        expected: Layout of the first sample.
        where: Address of the sample, for messages.
        first: Address of the first sample.

    Raises:
        UserError: If the sample differs. The error names the first part that does.
    """
    layout = layout_of(value)
    if layout == expected:
        return
    path = next(path for path in (*expected, *layout) if layout.get(path) != expected.get(path))
    raise UserError(
        f"{where}{path}: expected {expected.get(path, 'nothing')}, as {first} has, got {layout.get(path, 'nothing')};"
        " resize or pad in the dataset, or give a DataLoader with a collate_fn"
    )
