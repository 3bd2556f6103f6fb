"""Write tars of the kept samples in a seeded order, with images byte for byte. Each tar is a task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vfm.data import (
    IMAGE_EXTENSIONS,
    BadSample,
    Sample,
    SampleOrder,
    Source,
    open_dataset,
    open_image,
    raise_if_unreachable,
    write_tar,
)
from vfm.plugin import CuratedSubset, store_files
from vfm_curation.shard_files import whole_file
from vfm_curation.summaries import TaskSummary

TARS_FOLDER = "tars"
Member = tuple[str, Mapping[str, bytes]]
JPEG = {"jpeg": "jpg", "mpo": "jpg"}  # an MPO, a format of cameras, begins with a whole JPEG


@dataclass(frozen=True)
class TarsJob:
    """Settings that all tars of an export share."""

    subset: Path
    folder: Path
    samples_per_shard: int
    shuffle_shards: int
    seed: int

    def file(self, shard: int) -> Path:
        """Build the path of a tar."""
        return self.folder / f"{shard:05d}.tar"


@dataclass
class TarSummary(TaskSummary):
    """Counts of a tar, stored next to it while the stage runs, so that a finished tar is not written again."""

    shard: int = 0
    num_samples: int = 0


@lru_cache(maxsize=1)
def _opened(job: TarsJob) -> tuple[Source, SampleOrder]:
    source = open_dataset(CuratedSubset.load(job.subset))
    return source, SampleOrder(source.epochs, seed=job.seed, shuffle_shards=job.shuffle_shards)


def write_shard(job: TarsJob, shard: int) -> TarSummary:
    """Write the samples of a tar. Images that cannot be read are left out and counted.

    Raises:
        UserError: If a shard of the pool is missing, or is remote and cannot be reached.
    """
    record = job.folder.parent / f"{job.folder.name}.summaries" / f"{shard:05d}.json"
    if record.is_file() and job.file(shard).is_file():  # a run that ended later has moved the tars, not the records
        with store_files.reading(record, "the summary of a tar"):
            return TarSummary.of(store_files.read_record(record))
    source, order = _opened(job)
    start = shard * job.samples_per_shard
    indices = order(start, min(start + job.samples_per_shard, len(source))).tolist()
    summary = TarSummary(shard=shard)
    with whole_file(job.file(shard)) as part:
        summary.num_samples = write_tar(part, _members(source, indices, shard, summary))
    record.parent.mkdir(exist_ok=True)
    with whole_file(record) as part:
        part.write_text(json.dumps(vars(summary)), encoding="utf-8")
    return summary


def _members(source: Source, indices: list[int], shard: int, summary: TarSummary) -> Iterator[Member]:
    """Yield the members of a tar, with keys like img2dataset's.

    A key is the number of the tar and of the sample. The uid is in the json.
    """
    for number, index in enumerate(indices):
        try:
            sample = source[index]
            kind = str(open_image(sample.image, source.where(index)).format).lower()
            extension = JPEG.get(kind, kind)
            if extension not in IMAGE_EXTENSIONS:  # readers would treat it as a caption without an image
                raise BadSample("unreadable_image", source.where(index))
        except BadSample as bad:
            raise_if_unreachable(bad)
            summary.skip(bad.reason, bad.where)
            continue
        summary.num_texts += sum(map(len, sample.texts.values()))
        # `.txt` holds a single text, as in the tars of img2dataset.
        first = next(texts[0] for texts in sample.texts.values())
        yield (
            f"{shard:05d}{number:06d}",
            {extension: sample.image, "txt": first.encode(), "json": _record(sample, source, index)},
        )


def _record(sample: Sample, source: Source, index: int) -> bytes:
    """Encode the texts, and the fields that join the sample to the user's own files, as JSON."""
    shard, row = source.locate(index)
    facts = {"uid": sample.uid, "key": sample.key, "shard": source.index.shards[shard].path, "row": row}
    facts |= {"url": sample.url} if sample.url else {}
    return json.dumps({**facts, **sample.texts}, ensure_ascii=False).encode()
