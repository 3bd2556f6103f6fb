"""Configurations of `curation.extract` and `curation.retry`: tables of image links."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from vfm.plugin import Artifact, LinkTable, expand_paths, files
from vfm_curation.crawl.path_lists import is_path_list, paths_in
from vfm_curation.runtime import CurationStage

HOPELESS = r"HTTP Error (400|401|404|405|410|451)|[Nn]ame or service not known|unknown url type"


class ExtractLinks(CurationStage):
    """Find images with texts in crawled pages and merge them by URL. Nothing is downloaded."""

    kind: Literal["curation.extract"] = "curation.extract"
    path: str | list[str] = Field(
        description="WAT or WARC files, local or remote: `{000..009}.warc.wat.gz`, a pattern or a list, or a list of"
        " paths as Common Crawl publishes it, `wat.paths.gz`"
    )
    root: str = Field("https://data.commoncrawl.org/", description="prefix of the relative paths in a `.paths` list")
    num_files: int | None = Field(None, ge=1, description="read at most this many files, the first; default: all")
    language: str = Field("und", description="key of the texts in the dataset; und: undetermined")
    buckets: int = Field(16, ge=1, le=4096, description="shards of the table, each of which must fit into memory")
    unescape: bool = Field(
        False, description="decode HTML entities of WAT files: Common Crawl did not decode them before August 2019"
    )

    makes: ClassVar[type[Artifact]] = LinkTable
    version: ClassVar[int] = 3
    work: ClassVar[str] = "vfm_curation.crawl.extract:extract_links"
    checks: ClassVar[str] = "vfm_curation.crawl.extract:check_extract"

    def sources(self) -> Iterable[str]:
        """List the paths of the recipe, and the local files that local lists contain."""
        paths = expand_paths(self.path)
        listed: list[str] = []
        for path in paths:
            if is_path_list(path) and not files.is_remote(path):
                listed += paths_in(path, self.root)
        return [*paths, *(path for path in listed[: self.num_files] if not files.is_remote(path))]


class RetryLinks(CurationStage):
    """List the links whose download failed and may still succeed, to download them again or to curate them."""

    kind: Literal["curation.retry"] = "curation.retry"
    path: str | list[str] = Field(
        description="parquet files that the last run of img2dataset wrote next to its shards: `images/*.parquet`"
    )
    hopeless: str = Field(
        HOPELESS, description="regular expression: failures whose error message matches it are not listed"
    )
    language: str = Field("und", description="key of the texts in the dataset; und: undetermined")

    makes: ClassVar[type[Artifact]] = LinkTable
    work: ClassVar[str] = "vfm_curation.crawl.retry:retry_links"
    checks: ClassVar[str] = "vfm_curation.crawl.retry:check_retry"

    def sources(self) -> Iterable[str]:
        """List the files."""
        return expand_paths(self.path)
