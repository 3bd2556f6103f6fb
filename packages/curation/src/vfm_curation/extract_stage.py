"""The stage `curation.extract`: addresses of images with their texts, from Common Crawl's WAT and WARC files."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from vfm.artifacts import LinkTable
from vfm.config import UserError
from vfm.data import files
from vfm.stage import Context, Preflight, Stage

LISTS = (".paths", ".paths.gz")


class ExtractLinks(Stage):
    """Finds images with texts in crawled pages, each address once; nothing is downloaded."""

    kind: Literal["curation.extract"] = "curation.extract"
    path: str | list[str] = Field(
        description="WAT or WARC files as `{000..009}.warc.wat.gz`, a pattern or a list, local or remote; or a list of"
        " them as Common Crawl gives it, `wat.paths.gz`"
    )
    root: str = Field("https://data.commoncrawl.org/", description="what the lines of a `.paths` list are relative to")
    num_files: int | None = Field(None, ge=1, description="take the first so many; default: all")
    language: str = Field("und", description="key of the texts in the data set; und: not known, as of the web's")
    buckets: int = Field(16, ge=1, le=4096, description="shards of the table; memory is that of one")
    unescape: bool = Field(
        False, description="decode HTML entities of WAT files: Common Crawl's have them undecoded until August 2019"
    )

    def sources(self) -> Iterable[str]:
        """The files, the lists that name them, and the files that local lists name, as far as these are local."""
        given = files.expand_paths(self.path)
        lists = [path for path in given if path.endswith(LISTS) and not files.is_remote(path)]
        named = [path for listed in lists for path in self._listed(listed)]
        return [*given, *(path for path in named[: self.num_files] if not files.is_remote(path))]

    def preflight(self, ctx: Preflight) -> None:
        """The files are there, as far as they are local, and what reads the others is installed."""
        paths = files.expand_paths(self.path)
        for path in paths:
            if not files.is_remote(path) and not files.exists(path):
                raise UserError(f"{path}: no such file")
        roots = [self.root] if any(path.endswith(LISTS) for path in paths) else []
        if remote := next(filter(files.is_remote, [*paths, *roots]), None):
            files.filesystem(remote)

    def run(self, ctx: Context) -> LinkTable:
        """Writes `links/00000.parquet`, ...: uid, url, caption, texts; sorted by uid, which is the URL's hash."""
        from vfm_curation.engine import run_shards, told
        from vfm_curation.extract import ExtractJob, extract_file, fingerprint, merge_bucket
        from vfm_curation.link_table import publish_links
        from vfm_curation.shard_files import made_from

        paths = self._files()
        listed, source = ctx.work / "paths.txt", made_from(*map(fingerprint, paths))
        job = ExtractJob(listed, source, ctx.work / "files", ctx.work / "table", self.buckets, self.unescape)
        job.paths.write_text("\n".join(paths), encoding="utf-8")
        for folder in (job.work, job.folder):
            folder.mkdir(exist_ok=True)
        num_pages = num_texts = 0
        for found in told(ctx, run_shards(extract_file, job, range(len(paths)), self.runtime), len(paths)):
            num_pages, num_texts = num_pages + found.num_pages, num_texts + found.num_texts
        if not num_texts:
            raise UserError(f"{self.name}: no image with a text in {len(paths)} files, the first is {paths[0]}")
        num_merged = 0
        for bucket in told(ctx, run_shards(merge_bucket, job, range(self.buckets), self.runtime), self.buckets):
            num_merged += bucket.num_texts
        table = publish_links(ctx, job.folder, self.language)
        values = {"pages": num_pages, "texts_found": num_texts, "texts": num_merged, "links": table.num_samples}
        ctx.emit("metrics", step=1, samples=table.num_samples, values={f"curation/{k}": v for k, v in values.items()})
        return table

    def _files(self) -> list[str]:
        """The crawl files, those of lists one by one."""
        found: list[str] = []
        for path in files.expand_paths(self.path):
            found += self._listed(path) if path.endswith(LISTS) else [path]
        return found[: self.num_files]

    def _listed(self, path: str) -> list[str]:
        try:
            data = files.read_bytes(path)
            lines = (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8").split()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise UserError(f"{path}: not a readable list of paths: {error}") from None
        own = (files.is_remote(line) or os.path.isabs(line) for line in lines)
        return [line if alone else f"{self.root.rstrip('/')}/{line}" for line, alone in zip(lines, own, strict=True)]
