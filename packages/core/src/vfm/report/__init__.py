"""Draw the report of a run as one HTML file, from the files of its stages."""

from vfm.flow.records.runs import REPORT_FILE
from vfm.report.live import present_summary
from vfm.report.page import changed_page, current_report, is_current, report_of_run, write_report
from vfm.report.results import SeedSummary
from vfm.report.run_summary import RunSummary, StageEntry, summary_of_run

__all__ = [
    "REPORT_FILE",
    "RunSummary",
    "SeedSummary",
    "StageEntry",
    "changed_page",
    "current_report",
    "is_current",
    "present_summary",
    "report_of_run",
    "summary_of_run",
    "write_report",
]
