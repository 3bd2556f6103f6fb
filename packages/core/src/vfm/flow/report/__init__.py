"""The report of a run: one HTML file, drawn from what the stages left on disk."""

from vfm.flow.report.gather import current_report, report_of_run, summary_of_run
from vfm.flow.report.page import write_report
from vfm.flow.report.summary import RunSummary, StageEntry
from vfm.flow.results import SeedSummary

__all__ = [
    "RunSummary",
    "SeedSummary",
    "StageEntry",
    "current_report",
    "report_of_run",
    "summary_of_run",
    "write_report",
]
