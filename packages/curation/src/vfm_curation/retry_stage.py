"""The stage `curation.retry`: the addresses that img2dataset failed to download, to be tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from vfm.artifacts import LinkTable
from vfm.config import UserError
from vfm.data import files
from vfm.stage import Context, Preflight, Stage

HOPELESS = r"HTTP Error (400|401|404|405|410|451)|[Nn]ame or service not known|unknown url type"


class RetryLinks(Stage):
    """Lists the addresses whose download failed and may yet succeed, as a table to curate or to download again."""

    kind: Literal["curation.retry"] = "curation.retry"
    path: str | list[str] = Field(
        description="parquet that img2dataset left beside its shards, of the last attempt: `images/*.parquet`"
    )
    hopeless: str = Field(HOPELESS, description="a regular expression: failures whose message fits it stay failed")
    language: str = Field("und", description="key of the texts in the data set; und: not known, as of the web's")

    def sources(self) -> Iterable[str]:
        """The files."""
        return files.expand_paths(self.path)

    def preflight(self, ctx: Preflight) -> None:
        """The files are what img2dataset leaves, and the expression is one."""
        from vfm_curation.retry import check_expression, open_outcomes

        check_expression(self.hopeless)
        for path in files.expand_paths(self.path)[:1]:
            open_outcomes(path)

    def run(self, ctx: Context) -> LinkTable:
        """Writes `links/00000.parquet`, ..., as `curation.extract` does."""
        from vfm_curation.engine import run_shards, told
        from vfm_curation.link_table import publish_links
        from vfm_curation.retry import RetryJob, retry_file

        paths = tuple(files.expand_paths(self.path))
        job = RetryJob(paths, self.hopeless, ctx.work / "table")
        job.folder.mkdir(exist_ok=True)
        outcomes: Counter[str] = Counter()
        for summary in told(ctx, run_shards(retry_file, job, range(len(paths)), self.runtime), len(paths)):
            outcomes.update(summary.outcomes)
        if not outcomes["to_try_again"]:
            raise UserError(f"{self.name}: nothing to try again: {dict(outcomes)}")
        values = {f"curation/{name}": count for name, count in outcomes.items()}
        ctx.emit("metrics", step=1, samples=outcomes["to_try_again"], values=values)
        return publish_links(ctx, job.folder, self.language)
