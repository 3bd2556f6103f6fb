"""Write the report of a run, one HTML file with results and intervals, stages, and their panels.

The page draws panels and evaluation reports of any plugin. It loads nothing, and is complete without its script, which
sorts, filters, enlarges, overlays and folds. No other script can run, since the page's policy has the script's hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vfm.base import UserError, how_to_install, metric_in_words, number_format, redacted
from vfm.flow.records.runs import REPORT_FILE, hash_of_record
from vfm.interfaces import ImagesPanel, LinesPanel, Panel, TextPanel
from vfm.report.conclusions import ReportedComparison, corrections
from vfm.report.decisions import decisions
from vfm.report.first_screen import first_panels, main_results
from vfm.report.joint import joint_panels
from vfm.report.power_charts import power_charts
from vfm.report.result_table import ResultTable, corrected_tables, report_table, seed_tables
from vfm.report.run_summary import RunSummary, StageEntry, summary_of_run
from vfm.report.text import shown
from vfm.report.theme import DASHES, THEME, color
from vfm.storage.integrity import sealed_page
from vfm.storage.publishing import write_file

if TYPE_CHECKING:  # `drawing` imports matplotlib, an optional extra
    from vfm.report.drawing import Drawing

FOLDER = Path(__file__).parent  # folder of the templates, the style and the script
MAX_YAML_LINES = 300
NOUNS = {"lines": "chart", "bars": "chart", "table": "table", "images": "image", "text": "text"}
HEAD_BYTES = 1000  # bytes at the start of a page that contain the hash of its run's record


@dataclass(frozen=True)
class Section:
    """The section of a stage, with the results that are not in the headline, and the panels."""

    entry: StageEntry
    table: ResultTable | None
    drawings: list[Drawing]
    repeats: bool  # whether an earlier section has the same stage with another seed

    @property
    def filled(self) -> bool:
        """Whether the section has any content."""
        return bool(self.drawings or (self.table and self.table.further))

    @property
    def contents(self) -> str:
        """Content of the folded section, such as "4 charts, 1 table, 16 images"."""
        counts = Counter({"table": int(bool(self.table and self.table.further))})
        for drawing in self.drawings:
            panel = drawing.panel
            if isinstance(panel, ImagesPanel):
                counts["image"] += len(panel.pictures)
            elif panel:
                counts[NOUNS[panel.type]] += 1
        parts = []
        for noun, count in counts.items():
            if count:
                parts.append(f"{count} {noun}s" if count > 1 else f"{count} {noun}")
        return ", ".join(parts)


def current_report(directory: Path) -> Path:
    """Find the page of a finished run. It is drawn only if the run has changed since it was drawn."""
    if is_current(directory):
        return directory / REPORT_FILE
    return report_of_run(directory)


def is_current(directory: Path) -> bool:
    """Check whether a run's folder has a page drawn from the current record. File times do not matter."""
    page = directory / REPORT_FILE
    if not page.is_file():
        return False
    with page.open("rb") as stream:
        return hash_of_record(directory).encode() in stream.read(HEAD_BYTES)


def changed_page(directory: Path) -> list[str]:
    """Draw the page of a finished run again, and describe it in a line if the page in its folder differs."""
    page = directory / REPORT_FILE
    if not page.is_file():
        return []
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / REPORT_FILE
        write_report(summary_of_run(directory), again)
        same = again.read_bytes() == page.read_bytes()
    reasons = "it was edited, the store was moved, or other versions drew it"
    if same:
        return []
    return [f"{page}: differs from the page drawn now: {reasons}; vfm report draws it again"]


def report_of_run(directory: Path) -> Path:
    """Draw the report of a finished run into its folder.

    Raises:
        UserError: If an artifact is missing or its package is not installed, or jinja2 or matplotlib is missing.
    """
    page = directory / REPORT_FILE
    write_report(summary_of_run(directory), page)
    return page


class Drawn(dict[str, "list[Drawing]"]):
    """Drawings of finished stages by name.

    A page that is drawn repeatedly reuses them.
    """


def write_report(run: RunSummary, path: Path, known: Drawn | None = None) -> None:
    """Write the report of a run to `path` atomically.

    A panel that cannot be drawn is replaced by a note.

    Args:
        run: Summary of the run.
        path: The file.
        known: Drawings that are not drawn again. New ones are added.

    Raises:
        UserError: If jinja2 or matplotlib is not installed.
    """
    try:
        from vfm.report.drawing import draw_all  # imports matplotlib, an optional extra
    except ImportError as error:
        raise UserError(f"the report needs {error.name}: {how_to_install('vfm-core[report]')}") from None
    over_seeds = seed_tables(run)
    stage_tables: dict[str, ResultTable] = {}
    for entry in run.stages:
        table = report_table(entry, set(over_seeds))
        if table:
            stage_tables[entry.name] = table
    fixed, findings = corrected_tables([*over_seeds.values(), *stage_tables.values()])
    headline = [table for table in fixed if table.headline]
    tables = dict(zip(stage_tables, fixed[len(over_seeds) :], strict=True))
    drawn = _drawings(run, Drawn() if known is None else known, power_charts(findings))
    front: list[Drawing] = []
    curves: list[tuple[str, LinesPanel]] = []
    for name, drawings in drawn.items():
        for drawing in drawings:
            if drawing.front:
                front.append(drawing)
            if isinstance(drawing.panel, LinesPanel):
                curves.append((name, drawing.panel))
    front += draw_all(joint_panels(curves), path.parent, "joint")
    results = [] if front else main_results(headline)
    front = front or first_panels(drawn)
    sections = []
    earlier: set[str] = set()  # names of stages without the seed
    for entry in run.stages:
        folded = [drawing for drawing in drawn[entry.name] if drawing not in front]
        sections.append(Section(entry, tables.get(entry.name), folded, repeats=entry.base_name in earlier))
        earlier.add(entry.base_name)
    render(run, headline, front, sections, findings, path, says=results)


def _drawings(run: RunSummary, known: Drawn, power: Mapping[str, Panel]) -> dict[str, list[Drawing]]:
    """Draw the panels of finished stages, once for all pages, the charts of running ones, and charts of their speed.

    `power` has the chart of each evaluation's power, by the name of its stage.
    """
    from vfm.report.drawing import draw, draw_all, draw_panels

    drawn = {}
    for entry in run.stages:
        if entry.manifest and entry.name not in known:
            known[entry.name] = list(draw_panels(entry.directory, entry.anchor))
        panels = known.get(entry.name) or draw_all(entry.charts, entry.directory, entry.anchor)
        drawn[entry.name] = panels + draw_all(entry.speed, entry.directory, f"{entry.anchor}-speed")
        if entry.name in power:
            drawn[entry.name].append(draw(power[entry.name], entry.directory, f"{entry.anchor}-power"))
    return drawn


def render(
    run: RunSummary,
    headline: list[ResultTable],
    front: list[Drawing],
    sections: list[Section],
    findings: list[ReportedComparison],
    path: Path,
    *,
    says: Sequence[str] = (),
) -> None:
    """Write a page to `path` atomically.

    Args:
        run: Summary of the run.
        headline: Results for the top of the page.
        front: Panels for the top of the page.
        sections: One for each stage.
        findings: The comparisons of the page, corrected for their number.
        path: The file.
        says: Sentences on the main results for the top of the page.

    Raises:
        UserError: If jinja2 is not installed.
    """
    try:
        import jinja2  # optional extra
    except ImportError as error:
        raise UserError(f"the report needs {error.name}: {how_to_install('vfm-core[report]')}") from None
    anchors = {entry.name: f"made-{entry.anchor}" for entry in run.stages}
    filled = []
    for section in sections:
        if section.filled:
            filled.append(section)
            if section.entry.name in anchors:  # a section of a comparison has the name of several stages
                anchors[section.entry.name] = section.entry.anchor
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, finalize=shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    bad: list[tuple[StageEntry, str, int]] = []
    warnings: list[tuple[StageEntry, str]] = []
    for entry in run.stages:
        for reason, count in entry.manifest.get("bad_samples", {}).items():
            bad.append((entry, reason, count))
        for message in entry.manifest.get("warnings", ()):
            warnings.append((entry, message))
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    script = (FOLDER / "overlay.js").read_text(encoding="utf-8") + (FOLDER / "page.js").read_text(encoding="utf-8")
    environment.globals.update(color=color, format=number_format, metric_in_words=metric_in_words)
    page = environment.get_template("page.html.j2").render(
        run=run,
        headline=headline,
        says=says,
        decided=decisions(findings),
        # The text and images of a stage, such as `eval.ablation`, come first. The decisions follow in the results.
        stage_has_text=any(isinstance(drawing.panel, TextPanel) for drawing in front),
        corrections=corrections(findings),
        tests=sorted({finding.test.test for finding in findings}),
        front=front,
        sections=filled,
        anchors=anchors,
        bad=bad,
        warnings=warnings,
        as_yaml=as_yaml,
        theme=THEME,
        dashes=DASHES,
        style=style,
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    content = page.encode(errors="replace")  # a path may contain bytes that are not valid text
    write_file(path, sealed_page(content), durable=False)


def as_yaml(value: object) -> str:
    """Format plain data as YAML, cut if it would fill the page (a pool of ten thousand shards)."""
    plain = redacted(json.loads(json.dumps(value, default=str)))
    lines = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).splitlines()
    more = len(lines) - MAX_YAML_LINES
    if more > 0:
        cut = [f"# {more} more lines in manifest.json in the artifact's folder"]
    else:
        cut = []
    return "\n".join(lines[:MAX_YAML_LINES] + cut)
