"""Embeddings and scores by a CLIP model. One shard is a task. Embeddings are stored in fp16, scores in parquet."""

# N images or texts, D joint width

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.data import BadSample, decode_image, texts_schema
from vfm.eval import check_finite
from vfm.models import ClipModel, load_clip
from vfm.plugin import ClipCheckpoint, Runtime
from vfm.train import prepare_device
from vfm_curation.filters.images import remaining_samples, source_of
from vfm_curation.filters.survivors import Survivors, save_array, shard_file
from vfm_curation.filters.texts import opened
from vfm_curation.pool_texts import texts_of
from vfm_curation.shard_files import finished_summary, write_shard_file
from vfm_curation.summaries import TaskSummary

NAME = ["row", "language", "text_index"]  # columns that identify a text within its shard
BATCH = 64  # images decoded, or texts encoded, at a time


@dataclass(frozen=True)
class ClipJob:
    """Settings that the tasks with a CLIP model share. Scores read embeddings in `embedded`, results go to `folder`."""

    dataset: Path
    folder: Path
    survivors: Survivors | None
    clip: Path
    embedded: Path = field(default=Path())
    runtime: Runtime = field(default=Runtime())


@functools.lru_cache(maxsize=1)
def loaded(clip: Path, runtime: Runtime) -> ClipModel:
    """Load the model, once in each process."""
    return load_clip(ClipCheckpoint.load(clip), prepare_device(runtime))


def embed_images(job: ClipJob, shard: int) -> TaskSummary:
    """Write unit vectors, fp16 (N, D), and a file with their rows, and with the reason if an image is `bad`."""
    file = shard_file(job.folder, shard)
    source_hash = source_of(job.dataset, job.survivors, shard)
    finished = finished_summary(file, source_hash)
    if finished:
        return TaskSummary.of(finished)
    path = opened(job.dataset).index.shards[shard].path
    summary = TaskSummary()
    rows: list[dict[str, Any]] = []
    names: list[str] = []

    def images() -> Iterator[Any]:
        for row, sample in remaining_samples(job.dataset, job.survivors, shard):
            try:
                if isinstance(sample, BadSample):
                    raise sample
                name = f"{path}:{sample.key}"
                yield decode_image(sample.image, name)
                names.append(name)
                rows.append({"row": row})
            except BadSample as bad:
                summary.skip(bad.reason, bad.where)
                rows.append({"row": row, "bad": bad.reason})

    model = loaded(job.clip, job.runtime)
    parts = [model.encode_images(batch, BATCH).numpy() for batch in _batches(images())]
    vectors = np.concatenate(parts) if parts else np.zeros((0, model.embed_dim))
    if names:
        check_finite(vectors, job.clip.name, names)
    summary.num_texts = len(rows)
    # Half precision, at half the size on disk.
    save_array(shard_file(job.folder, shard, "npy"), vectors.astype(np.float16))
    table = pa.Table.from_pylist(rows, pa.schema({"row": pa.int32(), "bad": pa.string()}))
    write_shard_file(file, table, source_hash, vars(summary))  # last: it marks both as whole
    return summary


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    for _, group in groupby(enumerate(items), key=lambda numbered: numbered[0] // BATCH):
        yield [item for _, item in group]


def read_embeddings(folder: Path, shard: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Read rows, ascending, and unit vectors, (N, D), of the usable images of a shard."""
    table = pq.read_table(shard_file(folder, shard), page_checksum_verification=True)
    vectors = np.load(shard_file(folder, shard, "npy")).astype(np.float32)
    # Unusable images have a row but no vector.
    rows = table["row"].to_numpy()[table["bad"].is_null().to_numpy()]
    # Rounding to fp16 changes a vector's length by up to a thousandth.
    return rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def score_texts(job: ClipJob, shard: int) -> TaskSummary:
    """Write each remaining text's cosine with its image as `score`, and its index in the shard as `unit`."""
    file = shard_file(job.folder, shard)
    source_hash = source_of(job.dataset, job.survivors, shard)
    finished = finished_summary(file, source_hash)
    if finished:
        return TaskSummary.of(finished)
    assert job.survivors
    identity = job.survivors.remaining(shard, NAME)
    if len(identity):
        texts = texts_of(opened(job.dataset), shard)
    else:
        texts = texts_schema().empty_table()
    text_names = zip(*(texts[name].to_pylist() for name in NAME), strict=True)
    # Texts are read again by name, as their measurements need not hold them.
    text_of_name = dict(zip(text_names, texts["text"].to_pylist(), strict=True))
    remaining_names = zip(*(identity[name].to_pylist() for name in NAME), strict=True)
    remaining = [text_of_name[name] for name in remaining_names]
    rows, vectors = read_embeddings(job.embedded, shard)
    of_text = vectors[np.searchsorted(rows, identity["row"].to_numpy())]
    model = loaded(job.clip, job.runtime)
    starts = range(0, len(remaining), BATCH)
    scores = []
    for start in starts:
        text_vectors = model.encode_texts(remaining[start : start + BATCH], BATCH).numpy()
        scores.append((text_vectors * of_text[start : start + BATCH]).sum(axis=1))
    for part, start in zip(scores, starts, strict=True):
        check_finite(part, job.clip.name, remaining[start : start + BATCH])
    table = pa.table({"unit": identity["unit"], "score": pa.array(np.concatenate([*scores, []]), pa.float32())})
    summary = TaskSummary(num_texts=len(remaining))
    write_shard_file(file, table, source_hash, vars(summary))
    return summary
