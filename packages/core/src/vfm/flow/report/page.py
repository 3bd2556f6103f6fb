"""A run as one HTML file that needs nothing else: results with intervals, what ran, what the stages left to look at.

The page draws panels and evaluation reports and knows no plugin. It holds no script and fetches nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vfm.config import UserError
from vfm.flow.report import wording
from vfm.flow.report.results import ResultTable, report_table, seed_tables
from vfm.flow.report.summary import RunSummary, StageEntry

if TYPE_CHECKING:
    from vfm.flow.report.drawing import Drawing

TEMPLATE = Path(__file__).with_name("page.html.j2")
MAX_YAML_LINES = 300


@dataclass(frozen=True)
class Section:
    """What a stage has to show: the results that the headline leaves out, and its panels."""

    entry: StageEntry
    table: ResultTable | None
    drawings: list[Drawing]
    repeats: bool  # the stage of another seed has the same to show

    @property
    def filled(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.drawings or (self.table and self.table.further))


def write_report(run: RunSummary, path: Path) -> None:
    """Writes the report of a run to `path`, whole or not at all.

    A panel that cannot be drawn is told in its place; it does not cost the rest of the page.

    Raises:
        UserError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2

        from vfm.flow.report.charts import color
        from vfm.flow.report.drawing import draw_panels
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
    shown = {section.entry.name: section.entry.anchor for section in sections if section.filled}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        headline=headline,
        tests=sorted({test for table in headline for test in table.tests}),
        front=front,
        sections=[section for section in sections if section.filled],
        anchors={entry.name: shown.get(entry.name, f"made-{entry.anchor}") for entry in run.stages},
        bad=[(entry, *item) for entry in run.stages for item in entry.manifest.get("bad_samples", {}).items()],
        warnings=[(entry, message) for entry in run.stages for message in entry.manifest.get("warnings", ())],
        color=color,
        as_yaml=as_yaml,
        wording=wording,
    )
    partial = path.with_name(path.name + ".part")
    partial.write_text(page, encoding="utf-8", errors="replace")  # a path may hold what is no text
    partial.replace(path)


def as_yaml(value: object) -> str:
    """Plain data as YAML, cut where it would fill the page (a pool of ten thousand shards)."""
    plain = json.loads(json.dumps(value, default=str))
    lines = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).splitlines()
    more = len(lines) - MAX_YAML_LINES
    cut = [f"# {more} more lines: manifest.json in the artifact's folder has them"] if more > 0 else []
    return "\n".join(lines[:MAX_YAML_LINES] + cut)
