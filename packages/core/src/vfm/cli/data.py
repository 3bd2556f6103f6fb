"""The command that shows what a dataset has: data."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from vfm.base import UserError, load_function, redacted
from vfm.cli.command import DebugOption, command, console, show
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.interfaces import Event, load_plugins, stage_types

NUM_PICTURES = 10
NOT_SHOWN = ("type", "bad_samples")  # of an artifact's facts


@command
def data(
    path: Annotated[str, typer.Argument(help="Your files, or the folder of a saved dataset.")],
    out: Annotated[
        Path, typer.Option(readable=False, help="PNG file that the first pictures are drawn in, with their captions.")
    ] = Path("samples.png"),
    kind: Annotated[
        str, typer.Option(help="Stage that imports the files, such as data.annotated. Default: the one that fits.")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Read the first samples only.")] = None,
    debug: DebugOption = False,
) -> None:
    """Show the format of data, the samples, and which are skipped."""
    if out.suffix != ".png":
        raise UserError(f"--out {out}: expected a .png file, got {out.suffix or 'no suffix'}")
    summarize = load_function("vfm.flow.requests.dataset_summary:summarize_dataset")  # imports `vfm.data`
    listener = ConsoleListener(console)
    with TemporaryDirectory() as folder:
        listener.vfm_event(Event("stage_started", "data", {"kind": redacted(path), "status": "new"}))
        try:
            found = summarize(
                path, stage_types(load_plugins()), Path(folder), listener.vfm_event, kind=kind, num_samples=limit
            )
        finally:
            listener.close()
        if found.fields:
            show(f"in a recipe: {{{', '.join(f'{key}: {value}' for key, value in found.fields.items())}, name: NAME}}")
        if found.passed_over:
            show(f"not {found.passed_over}")
        for key, value in found.dataset.model_dump(mode="json").items():
            if key not in NOT_SHOWN and value not in (None, [], {}, ""):
                show(f"{key}: {_words(value)}")
        for reason, count in found.skipped.most_common():
            first = f"; the first is {found.first[reason]}" if reason in found.first else ""
            show(f"skipped: {count:,} {reason}{first}")
        if found.num_counted:
            show(f"not checked: {found.num_counted:,} samples were only counted; a bad one is found when it is used")
        if found.not_taken:
            example = f"data.pairs with texts: {{en: {found.not_taken[0]}}}"
            show(f"text that is not read: {', '.join(found.not_taken)}; to read captions: {example}")
        for caption in found.captions(NUM_PICTURES):
            show(f"caption: {caption}")
        if sheet := found.sheet(NUM_PICTURES):
            out.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(out)
            show(f"first pictures: {out}")


def _words(value: object) -> str:
    """Return a fact in a few words: a list of many is cut."""
    if isinstance(value, list) and len(value) > NUM_PICTURES:
        return f"{', '.join(map(str, value[:NUM_PICTURES]))}, ... ({len(value):,})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
