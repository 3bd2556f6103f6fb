"""The command that summarizes a dataset: data."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from vfm.base import UserError, load_function, redacted
from vfm.cli.command import DataOption, DebugOption, command, console, show
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.flow.recipe.yaml_lines import dump, flow_text
from vfm.flow.requests.data_options import read_data_options
from vfm.flow.requests.inputs import stage_name
from vfm.interfaces import Event, load_plugins, stage_types

NUM_IMAGES = 10  # of the page, if it is not set
NOT_SHOWN = ("type", "bad_samples")  # facts of an artifact that are not printed


@command
def data(
    path: Annotated[str, typer.Argument(help="Your files, or the folder of a saved dataset.")],
    out: Annotated[
        Path, typer.Option(readable=False, help="PNG file for the first images with their captions.")
    ] = Path("samples.png"),
    kind: Annotated[
        str, typer.Option(help="Stage that imports the files, such as data.annotated. Default: chosen by the files.")
    ] = "",
    data_option: DataOption = None,
    write: Annotated[
        Path | None, typer.Option(readable=False, help="YAML file for the stage that imports the data.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(readable=False, help="HTML file to browse the first 500 samples, for pairs and labels."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of samples to read. Default: all.")] = None,
    debug: DebugOption = False,
) -> None:
    """Show the format of data, the samples, and which are skipped."""
    if out.suffix != ".png":
        raise UserError(f"--out {out}: expected a .png file, got {out.suffix or 'no suffix'}")
    if write and write.exists():
        raise UserError(f"--write {write}: exists; give another file, or delete it")
    options = read_data_options(data_option or ())
    summarize = load_function("vfm.flow.requests.dataset_summary:summarize_dataset")  # imports `vfm.data`
    listener = ConsoleListener(console)
    with TemporaryDirectory() as folder:
        listener.vfm_event(Event("stage_started", "data", {"kind": redacted(path), "status": "new"}))
        try:
            summary = summarize(
                path,
                stage_types(load_plugins()),
                Path(folder),
                listener.vfm_event,
                kind=kind,
                options=options,
                num_samples=limit,
            )
        finally:
            listener.close()
        if summary.fields:
            show(f"in a recipe: {flow_text({**summary.fields, 'name': 'NAME'})}")
            if write:
                _write_stage(write, summary.fields)
        if summary.passed_over:
            show(f"not {summary.passed_over}")
        for key, value in summary.dataset.model_dump(mode="json").items():
            if key not in NOT_SHOWN and value not in (None, [], {}, ""):
                show(f"{key}: {_words(value)}")
        lines = summary.statistics()
        for line in lines:
            show(line)
        if page:
            page.write_text(summary.page(path, lines), encoding="utf-8")
            show(f"page: {page}")
        for reason, count in summary.skipped.most_common():
            if reason in summary.first:
                first = f"; the first is {summary.first[reason]}"
            else:
                first = ""
            show(f"skipped: {count:,} {reason}{first}")
        if summary.num_counted:
            show(f"not checked: {summary.num_counted:,} samples were only counted; a bad one is found when it is used")
        if not summary.is_decoded:
            show("not decoded: the files are large, so only headers of images were read; --limit N decodes the first N")
        if summary.not_taken:
            name = summary.not_taken[0]
            examples = f"as captions: texts: {{en: {name}}} in data.pairs; for reports and weights: columns: [{name}]"
            show(f"text that is not read: {', '.join(summary.not_taken)}; to read it {examples}")
        for caption in summary.captions(NUM_IMAGES):
            show(f"caption: {caption}")
        sheet = summary.sheet(NUM_IMAGES)
        if sheet:
            out.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(out)
            show(f"first images: {out}")


def _write_stage(file: Path, fields: dict[str, Any]) -> None:
    """Write a recipe with the stage that imports the data."""
    name = stage_name(Path(str(fields["path"]).rstrip("/")).name.split(".", 1)[0]) or "data"
    file.write_text(dump({"stages": [{"kind": fields["kind"], "name": name, **fields}]}), encoding="utf-8")
    show(f"recipe: {file}")


def _words(value: object) -> str:
    """Format a fact in a few words. Long lists are cut."""
    if isinstance(value, list) and len(value) > NUM_IMAGES:
        return f"{', '.join(map(str, value[:NUM_IMAGES]))}, ... ({len(value):,})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
