"""Measuring the images of a data set: one shard is one task, a parquet file with a row for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vfm.data import BadSample, Sample
from vfm.data.images import decode_image, open_image
from vfm_curation.addresses import urls_of_rows
from vfm_curation.engine import Summary
from vfm_curation.filters.phash import phash
from vfm_curation.filters.standing import Standing, shard_file
from vfm_curation.filters.texts import VERSION, digest, halves, opened
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file

IMAGE_COLUMNS = frozenset({"image", "url", "phash"})  # what is measured only where a filter asks for it


@dataclass(frozen=True)
class ImageJob:
    """What the tasks over a data set's images share; `standing` says which to look at, None: all."""

    dataset: Path
    folder: Path
    standing: Standing | None
    columns: frozenset[str]


def standing_samples(dataset: Path, standing: Standing | None, shard: int) -> Iterator[tuple[int, Sample | BadSample]]:
    """The samples of a shard with their rows, ascending: those of which a text stands, or all."""
    source = opened(dataset)
    end = int(source.shard_sizes[: shard + 1].sum())
    wanted = set(standing.rows(shard).tolist()) if standing else None
    for index in range(end - int(source.shard_sizes[shard]), end):
        _, row = source.locate(index)
        if wanted is None or row in wanted:
            try:
                yield row, source[index]
            except BadSample as bad:
                yield row, bad


def measure_images(job: ImageJob, shard: int) -> Summary:
    """Leaves of each image: row, `bad` (the reason where it cannot be used), `width` and `height` from its header.

    And the further columns of the job: `image` and `url` stand for two halves of a hash of the file and of the address
    each; `phash` decodes the picture. Of images that nobody has, the address is all.
    """
    file, entry = shard_file(job.folder, shard), opened(job.dataset).index.shards[shard]
    made = made_from(asdict(entry), sorted(job.columns), VERSION)
    if record := finished_summary(file, made):
        return Summary.of(record)
    summary = Summary()
    pictures = opened(job.dataset).index.spec.images
    found = list(_pictures(job, shard, summary) if pictures else _addresses(job, shard))
    summary.num_texts = len(found)
    write_shard_file(file, _table(found, job.columns), made, vars(summary))
    return summary


def _pictures(job: ImageJob, shard: int, summary: Summary) -> Iterator[dict[str, Any]]:
    path = opened(job.dataset).index.shards[shard].path
    for row, sample in standing_samples(job.dataset, job.standing, shard):
        try:
            yield {"row": row, **measure(sample, job.columns, path)}
        except BadSample as bad:
            summary.skip(bad.reason, bad.where)
            yield {"row": row, "bad": bad.reason}


def _addresses(job: ImageJob, shard: int) -> Iterator[dict[str, Any]]:
    source = opened(job.dataset)
    rows = job.standing.rows(shard) if job.standing else source.index.rows(shard)
    urls = urls_of_rows(source, shard, rows).cast(pa.binary()).to_pylist()  # bytes: some are no UTF-8
    for row, url in zip(rows.tolist(), urls, strict=True):
        yield {"row": row, "url": digest(url) if url else None}


def measure(sample: Sample | BadSample, columns: frozenset[str], shard: str) -> dict[str, Any]:
    """What is measured of one image.

    Raises:
        BadSample: it cannot be used.
    """
    if isinstance(sample, BadSample):
        raise sample
    picture = (decode_image if "phash" in columns else open_image)(sample.image, f"{shard}:{sample.key}")
    values: dict[str, Any] = {"width": picture.width, "height": picture.height}
    if "image" in columns:
        values["image"] = digest(sample.image)
    if "url" in columns and sample.url:
        values["url"] = digest(sample.url.encode("utf-8", "surrogatepass"))
    if "phash" in columns:
        values["phash"] = phash(picture)
    return values


def _table(found: Sequence[dict[str, Any]], columns: frozenset[str]) -> pa.Table:
    kinds = {"row": pa.int32(), "bad": pa.string(), "width": pa.int32(), "height": pa.int32()}
    kinds |= {"phash": pa.uint64()} if "phash" in columns else {}
    made = {name: pa.array([one.get(name) for one in found], kind) for name, kind in kinds.items()}
    for name in sorted(columns & {"image", "url"}):
        made |= halves(name, [one.get(name) for one in found])
    return pa.table(made)
