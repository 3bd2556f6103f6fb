"""Measure the images of a dataset. One shard is a task and a parquet file with a row for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vfm.data import BadSample, Sample, decode_image, open_image, raise_if_unreachable
from vfm_curation.filters.hashes import pdq, phash, variant_hashes
from vfm_curation.filters.local_points import points_of, thumbnail_of
from vfm_curation.filters.survivors import Survivors, shard_file
from vfm_curation.filters.texts import VERSION, digest, halves, opened
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file
from vfm_curation.summaries import TaskSummary

# Measured only if a filter reads them.
OPTIONAL_COLUMNS = frozenset({"image", "url", "phash", "variants", "address", "sha256", "pdq", "points", "thumbnail"})
KINDS = {
    "phash": pa.uint64(),
    "variants": pa.list_(pa.uint64()),
    "address": pa.string(),
    "sha256": pa.string(),
    "pdq": pa.binary(32),
    "points": pa.binary(),
    "thumbnail": pa.binary(),
}


@dataclass(frozen=True)
class ImageJob:
    """Settings that the tasks over a dataset's images share. Without `survivors` all images are measured."""

    dataset: Path
    folder: Path
    survivors: Survivors | None
    columns: frozenset[str]


def remaining_samples(
    dataset: Path, survivors: Survivors | None, shard: int
) -> Iterator[tuple[int, Sample | BadSample]]:
    """Yield the remaining samples of a shard with their rows, ascending.

    Args:
        dataset: Folder of the pool.
        survivors: Texts that remain. A sample remains if one of its texts does. Default: all.
        shard: Number of the shard.

    Raises:
        UserError: If the shard is missing, or is remote and cannot be reached.
    """
    source = opened(dataset)
    end = int(source.shard_sizes[: shard + 1].sum())
    remaining = set(survivors.rows(shard).tolist()) if survivors else None
    for index in range(end - int(source.shard_sizes[shard]), end):
        _, row = source.locate(index)
        if remaining is None or row in remaining:
            try:
                yield row, source[index]
            except BadSample as bad:
                raise_if_unreachable(bad)
                yield row, bad


def source_of(dataset: Path, survivors: Survivors | None, shard: int, *parts: Any) -> str:
    """Hash what measurements of a shard are made from, including which of its texts remain.

    Other texts remain if a shard that could not be read before is back when the filter resumes.
    """
    remaining = digest(survivors.places(shard).tobytes()).hex() if survivors else ""
    return made_from(asdict(opened(dataset).index.shards[shard]), remaining, *parts, VERSION)


def measure_images(job: ImageJob, shard: int) -> TaskSummary:
    """Measure the images of a shard, and write a row for each.

    The columns are row, `bad` (the reason if unusable), `width` and `height` from its header, and `num_bytes`. The job
    may list further columns. `image` and `url` stand for two halves each of a hash of the file and of the URL.
    `address` is the URL itself, `sha256` the hash of the file in hexadecimal digits. `phash`, `variants` (hashes of the
    forms that a copy may have), `pdq`, `points` (local features) and `thumbnail` decode the image. If the
    pool has no images, only the URL is measured.
    """
    file = shard_file(job.folder, shard)
    source_hash = source_of(job.dataset, job.survivors, shard, sorted(job.columns))
    finished = finished_summary(file, source_hash)
    if finished:
        return TaskSummary.of(finished)
    summary = TaskSummary()
    has_images = opened(job.dataset).index.spec.images
    measurements = list(_measured(job, shard, summary) if has_images else _urls(job, shard))
    summary.num_texts = len(measurements)
    write_shard_file(file, _table(measurements, job.columns), source_hash, vars(summary))
    return summary


def _measured(job: ImageJob, shard: int, summary: TaskSummary) -> Iterator[dict[str, Any]]:
    path = opened(job.dataset).index.shards[shard].path
    for row, sample in remaining_samples(job.dataset, job.survivors, shard):
        try:
            yield {"row": row, **measure(sample, job.columns, path)}
        except BadSample as bad:
            summary.skip(bad.reason, bad.where)
            yield {"row": row, "bad": bad.reason}


def _urls(job: ImageJob, shard: int) -> Iterator[dict[str, Any]]:
    source = opened(job.dataset)
    rows = job.survivors.rows(shard) if job.survivors else source.index.rows(shard)
    if not len(rows):  # perhaps of a shard that cannot be read
        return
    urls = source.index.open(shard).urls(rows).cast(pa.binary()).to_pylist()  # as bytes: some are not valid UTF-8
    for row, url in zip(rows.tolist(), urls, strict=True):
        address = url.decode("utf-8", "replace") if url else None
        yield {"row": row, "url": digest(url) if url else None, "address": address}


def measure(sample: Sample | BadSample, columns: frozenset[str], shard: str) -> dict[str, Any]:
    """Measure an image.

    Args:
        sample: The sample.
        columns: Columns to measure.
        shard: Path of its shard, for the error.

    Raises:
        BadSample: The image is unusable.
    """
    if isinstance(sample, BadSample):
        raise sample
    # Sizes are in the header, and decoding is a hundred times slower.
    read_image = decode_image if columns & {"phash", "pdq", "points", "thumbnail"} else open_image
    image = read_image(sample.image, f"{shard}:{sample.key}")
    values: dict[str, Any] = {"width": image.width, "height": image.height, "num_bytes": len(sample.image)}
    if "image" in columns:
        values["image"] = digest(sample.image)
    if "url" in columns and sample.url:
        values["url"] = digest(sample.url.encode("utf-8", "surrogatepass"))
    if "address" in columns and sample.url:
        values["address"] = sample.url.encode("utf-8", "replace").decode()
    if "phash" in columns:
        values["phash"] = phash(image)
    if "variants" in columns:
        values["variants"] = variant_hashes(image)
    if "sha256" in columns:
        values["sha256"] = hashlib.sha256(sample.image).hexdigest()
    if "pdq" in columns:
        values["pdq"] = pdq(image)
    if "points" in columns:
        values["points"] = points_of(image).tobytes()
    if "thumbnail" in columns:
        values["thumbnail"] = thumbnail_of(image)
    return values


def _table(measurements: Sequence[dict[str, Any]], columns: frozenset[str]) -> pa.Table:
    kinds = {"row": pa.int32(), "bad": pa.string(), "width": pa.int32(), "height": pa.int32(), "num_bytes": pa.int64()}
    kinds |= {name: kind for name, kind in KINDS.items() if name in columns}
    arrays = {}
    for name, kind in kinds.items():
        arrays[name] = pa.array([measured.get(name) for measured in measurements], kind)
    for name in sorted(columns & {"image", "url"}):
        arrays |= halves(name, [measured.get(name) for measured in measurements])
    return pa.table(arrays)
