"""Export a model for other libraries. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from vfm.api.paths import AnyPath, as_place
from vfm.api.results import Results, as_table
from vfm.base import UserError, load_function
from vfm.interfaces import FACTS_FILE, Artifact, DenseCheckpoint, naming_extras
from vfm.models import find_format, open_model
from vfm.storage.publishing import publish_folder

# The function that writes a model with a dense head, and the files' user, by format.
DENSE_WRITERS = {
    "onnx": ("vfm.eval.dense.onnx_export:write_dense_onnx", "onnxruntime"),
    "pt2": ("vfm.eval.dense.torch_export:write_dense_program", "torch.export.load"),
}


@dataclass(frozen=True, repr=False)
class Export(Results):
    """An exported model.

    Attributes:
        directory: The folder. With `dry_run` it does not exist.
        description: The format in words.
        notes: How to load the model, and what is different in the other library.
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
        model: Artifact, or folder of an artifact or of a model in the layout of open_clip, timm or Hugging Face.
        format: timm, open_clip, hf, safetensors, onnx, eva or llava; pt2 (`torch.export`) for a segmenter.
        out: Folder to write; it must not exist.
        base: For llava: folder of the LLaVA checkpoint whose vision tower is replaced.
        dry_run: Only check whether the model fits the format.

    Raises:
        UserError: If the folder exists, there is no such model, or it does not fit the format.
    """
    target = Path(as_place(out))
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} already exists; choose another folder, or remove it first")
    source = Path(as_place(model))
    if (source / FACTS_FILE).is_file():
        artifact = Artifact.load(source)
        if isinstance(artifact, DenseCheckpoint):
            return _export_dense(artifact, format, target, dry_run=dry_run)
    opened = open_model(source)
    form = find_format(format, opened, str(source), Path(base) if base is not None else None)
    if dry_run:
        return Export(target, form.description, [])
    return Export(target, form.description, _write(partial(form.write, opened), target))


def _export_dense(checkpoint: DenseCheckpoint, name: str, target: Path, *, dry_run: bool) -> Export:
    """Export a model with a dense head. The writer is imported only here, since ONNX needs an extra."""
    load_function("vfm.eval.dense.graph_export:check_dense_format")(checkpoint, name)
    writer, user = DENSE_WRITERS[name]
    with naming_extras(f"an export to {name}"):
        write = load_function(writer)
    notes = [] if dry_run else _write(partial(write, checkpoint), target)
    return Export(target, f"a model with a dense head for {user}", notes)


def _write(write: Callable[[Path], list[str]], target: Path) -> list[str]:
    """Write a folder under another name and rename it, so that it is never incomplete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        part = Path(folder) / "made"
        notes = list(write(part))
        publish_folder(part, target)
    return notes
