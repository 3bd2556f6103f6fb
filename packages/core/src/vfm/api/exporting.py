"""Export a model for other libraries. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from vfm.api.paths import AnyPath, as_place
from vfm.api.results import Results, as_table
from vfm.base import UserError
from vfm.interfaces import Artifact
from vfm.models import find_format, open_model
from vfm.storage.publishing import publish_folder


@dataclass(frozen=True, repr=False)
class Export(Results):
    """An exported model.

    Attributes:
        directory: the folder. With `dry_run` it does not exist.
        description: the format in words.
        notes: how to load the model, and what is different in the other library.
    """

    directory: Path
    description: str
    notes: list[str]

    @property
    def title(self) -> str:
        """One line about the results."""
        return f"{'wrote' if self.directory.is_dir() else 'would write'} {self.directory}: {self.description}"

    def table(self) -> Any:
        """Build an Arrow table of the files, with the columns file and bytes."""
        files = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        rows = [{"file": file.name, "bytes": file.stat().st_size} for file in files]
        return as_table(rows, {"file": pa.string(), "bytes": pa.int64()})


def export(
    model: AnyPath | Artifact,
    format: str,  # noqa: A002  (as the option of `vfm export`)
    out: AnyPath,
    *,
    base: AnyPath | None = None,
    dry_run: bool = False,
) -> Export:
    """Export a model for other libraries, as `vfm export`.

    Args:
        model: artifact, or folder of an artifact or of a model in the layout of open_clip, timm or Hugging Face.
        format: timm, open_clip, hf, safetensors, onnx, eva or llava.
        out: folder to write; it must not exist.
        base: for llava: folder of the LLaVA checkpoint whose vision tower is replaced.
        dry_run: only check whether the model fits the format.

    Raises:
        UserError: If the folder exists, there is no such model, or it does not fit the format.
    """
    target = Path(as_place(out))
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} already exists; choose another folder, or remove it first")
    source = Path(as_place(model))
    opened = open_model(source)
    form = find_format(format, opened, str(source), Path(base) if base is not None else None)
    if dry_run:
        return Export(target, form.description, [])
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name and then renamed, so that `out` is never incomplete.
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        part = Path(folder) / "made"
        notes = form.write(opened, part)
        publish_folder(part, target)
    return Export(target, form.description, list(notes))
