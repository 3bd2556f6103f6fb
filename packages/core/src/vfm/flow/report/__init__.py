"""The report of a run: one HTML file, drawn from what the stages left on disk."""

from vfm.flow.report.page import write_report
from vfm.flow.report.summary import RunSummary, SeedSummary, StageEntry

__all__ = ["RunSummary", "SeedSummary", "StageEntry", "write_report"]
