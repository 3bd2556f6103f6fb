"""Columns of tables that have the bytes of images."""

from __future__ import annotations

import pyarrow as pa

from vfm.base import UserError
from vfm.data.samples.sample import BadSample
from vfm.data.tables.image_list import read_image_file
from vfm.storage import files

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")


def image_column(names: list[str], image_key: str | None, path: str) -> str:
    """Find the name of the image column.

    Args:
        names: Columns of the file.
        image_key: Configured name.
        path: Path of the file, for messages.

    Raises:
        UserError: If there is no image column.
    """
    candidates = [image_key] if image_key else list(IMAGE_COLUMNS)
    for name in candidates:
        if name in names:
            return name
    raise UserError(f"{path}: no image column '{image_key or 'image'}' (image_key); the columns are {', '.join(names)}")


def holds_image(kind: pa.DataType) -> bool:
    """Check whether a column of a type may have images.

    Images are bytes, or Hugging Face's `{bytes, path}`.
    """
    if pa.types.is_dictionary(kind):
        return holds_image(kind.value_type)
    return bool(is_bytes(kind) or pa.types.is_struct(kind) or pa.types.is_null(kind))


def has_image_bytes(kind: pa.DataType) -> bool:
    """Check whether a column of a type has bytes, alone or in Hugging Face's `{bytes, path}`."""
    return is_bytes(kind) or bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def is_bytes(kind: pa.DataType) -> bool:
    """Check whether a column of a type has bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def image_bytes(value: object, root: str, where: str) -> bytes:
    """Read the bytes in a binary column, or in Hugging Face's `{bytes, path}` with a path in the folder `root`."""
    if isinstance(value, dict):
        name = value.get("path")
        value = value.get("bytes")
        if value is None and isinstance(name, str) and name:
            path = files.join_inside(root, name)
            if path is None:
                raise BadSample("unsafe_path", f"{where} ({name})")
            value = read_image_file(path)
    if not isinstance(value, bytes) or not value:
        raise BadSample("missing_image", where)
    return value
