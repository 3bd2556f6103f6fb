"""The verb that gives models away: export."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape

from vfm.cli.command import DebugOption, console, verb
from vfm.config import UserError


@verb
def export(
    model: Annotated[
        Path, typer.Argument(readable=False, help="An artifact, or a folder in open_clip's, timm's or HF's layout.")
    ],
    format: Annotated[str, typer.Option(help="timm, open_clip, hf, safetensors, onnx or eva.")],  # noqa: A002
    out: Annotated[Path, typer.Option("--out", readable=False, help="The folder to write; it must not be there yet.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whether the model fits the format.")] = False,
    debug: DebugOption = False,
) -> None:
    """Write a model as other people's code reads it: for timm, open_clip, transformers, onnxruntime or EVA's own."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} is there already; give another folder, or remove it first")
    from vfm.models.exporting import find_format, open_model

    found = open_model(model)
    form = find_format(format, found, str(model))
    if dry_run:
        _say(f"would write {out}: {form.what}")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:  # what is not whole never has the name
        made = Path(folder) / "made"
        lines = form.write(found, made)
        made.rename(out)
    _say(f"wrote {out}: {form.what}")
    for file in sorted(out.iterdir()):
        _say(f"{file.stat().st_size:>14,}  {file.name}")
    for line in lines:
        _say(line)


def _say(line: str) -> None:
    console.print(escape(line), highlight=False, soft_wrap=True)
