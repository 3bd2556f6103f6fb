"""The report of a run: one HTML file with the results and their intervals, the stages, and the panels they left.

The page draws panels and evaluation reports of any plugin. It contains no script and loads nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vfm.config import UserError
from vfm.flow import number_format
from vfm.flow.report.result_table import ResultTable, report_table, seed_tables
from vfm.flow.report.run_summary import RunSummary, StageEntry, hash_of_record, summary_of_run
from vfm.flow.report.text import shown
from vfm.redaction import redacted

if TYPE_CHECKING:  # `drawing` imports matplotlib, an optional extra
    from vfm.flow.report.drawing import Drawing

REPORT_FILE = "report.html"
TEMPLATE = Path(__file__).with_name("page.html.j2")
MAX_YAML_LINES = 300
HEAD_BYTES = 1000  # of a page, in which the hash of its run's record is


@dataclass(frozen=True)
class Section:
    """The section of a stage: the results that the headline leaves out, and the panels."""

    entry: StageEntry
    table: ResultTable | None
    drawings: list[Drawing]
    repeats: bool  # an earlier section has the same stage with another seed

    @property
    def filled(self) -> bool:
        """Whether the section has any content."""
        return bool(self.drawings or (self.table and self.table.further))


def current_report(directory: Path) -> Path:
    """Return the page of a finished run; draw it only if the run has changed since it was drawn."""
    return directory / REPORT_FILE if is_current(directory) else report_of_run(directory)


def is_current(directory: Path) -> bool:
    """Return whether a run's folder has a page that was drawn from the present record, whatever the clock says."""
    page = directory / REPORT_FILE
    if not page.is_file():
        return False
    with page.open("rb") as stream:
        return hash_of_record(directory).encode() in stream.read(HEAD_BYTES)


def report_of_run(directory: Path) -> Path:
    """Draw the report of a finished run into its folder, and return the page's path.

    Raises:
        UserError: an artifact is missing or its package is not installed, or jinja2 or matplotlib is missing.
    """
    page = directory / REPORT_FILE
    write_report(summary_of_run(directory), page)
    return page


def write_report(run: RunSummary, path: Path) -> None:
    """Write the report of a run to `path`, completely or not at all.

    A panel that cannot be drawn is replaced by a note.

    Raises:
        UserError: jinja2 or matplotlib is not installed.
    """
    try:
        from vfm.flow.report.drawing import draw_panels  # imports matplotlib, an optional extra
    except ImportError as error:
        raise UserError(f"the report needs {error.name}: pip install 'vfm-core[report]'") from None
    over_seeds = seed_tables(run)
    tables = {entry.name: table for entry in run.stages if (table := report_table(entry, set(over_seeds)))}
    headline = [table for table in [*over_seeds.values(), *tables.values()] if table.headline]
    bases = [entry.base_name for entry in run.stages]
    drawn = {entry.name: list(draw_panels(entry.directory, entry.anchor)) for entry in run.stages}
    front = [drawing for drawings in drawn.values() for drawing in drawings if drawing.front]
    sections = [
        Section(entry, tables.get(entry.name), [d for d in drawn[entry.name] if not d.front], base in bases[:index])
        for index, (entry, base) in enumerate(zip(run.stages, bases, strict=True))
    ]
    render(run, headline, front, sections, path)


def render(
    run: RunSummary, headline: list[ResultTable], front: list[Drawing], sections: list[Section], path: Path
) -> None:
    """Write a page to `path`, completely or not at all.

    Args:
        run: what the page is about.
        headline: results for the top of the page.
        front: panels for the top of the page.
        sections: one for each stage.
        path: the file.

    Raises:
        UserError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2  # optional extra

        from vfm.flow.report.charts import color  # imports matplotlib, an optional extra
    except ImportError as error:
        raise UserError(f"the report needs {error.name}: pip install 'vfm-core[report]'") from None
    linked = {section.entry.name: section.entry.anchor for section in sections if section.filled}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        headline=headline,
        tests=sorted({test for table in headline for test in table.tests}),
        front=front,
        sections=[section for section in sections if section.filled],
        anchors={entry.name: linked.get(entry.name, f"made-{entry.anchor}") for entry in run.stages},
        bad=[(entry, *item) for entry in run.stages for item in entry.manifest.get("bad_samples", {}).items()],
        warnings=[(entry, message) for entry in run.stages for message in entry.manifest.get("warnings", ())],
        color=color,
        as_yaml=as_yaml,
        format=number_format,
    )
    partial = path.with_name(path.name + ".part")
    partial.write_text(page, encoding="utf-8", errors="replace")  # a path may contain bytes that are not valid text
    partial.replace(path)


def as_yaml(value: object) -> str:
    """Return plain data as YAML, cut if it would fill the page (a pool of ten thousand shards)."""
    plain = redacted(json.loads(json.dumps(value, default=str)))
    lines = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).splitlines()
    more = len(lines) - MAX_YAML_LINES
    cut = [f"# {more} more lines in manifest.json in the artifact's folder"] if more > 0 else []
    return "\n".join(lines[:MAX_YAML_LINES] + cut)
