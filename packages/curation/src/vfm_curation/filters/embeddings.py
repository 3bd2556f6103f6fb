"""Embeddings and scores by a CLIP model: one shard is one task; embeddings are stored in fp16, scores in parquet."""

# N images or texts, D joint width

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
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
from vfm_curation.filters.images import remaining_samples
from vfm_curation.filters.survivors import Survivors, save_array, shard_file
from vfm_curation.filters.texts import IDENTITY, VERSION, opened
from vfm_curation.pool_texts import texts_of
from vfm_curation.shard_files import finished_summary, made_from, write_shard_file
from vfm_curation.summaries import Summary

NAME = IDENTITY[1:]  # what identifies a text within its shard
BATCH = 64  # images decoded, or texts encoded, at a time


@dataclass(frozen=True)
class ClipJob:
    """What the tasks with one CLIP model share; scores read the embeddings in `embedded`, results go to `folder`."""

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


def embed_images(job: ClipJob, shard: int) -> Summary:
    """Write unit vectors, fp16 (N, D), and beside them their rows, with the reason if an image is `bad`."""
    file, entry = shard_file(job.folder, shard), opened(job.dataset).index.shards[shard]
    made = made_from(asdict(entry), VERSION)
    if record := finished_summary(file, made):
        return Summary.of(record)
    summary = Summary()
    found: list[dict[str, Any]] = []
    names: list[str] = []

    def images() -> Iterator[Any]:
        for row, sample in remaining_samples(job.dataset, job.survivors, shard):
            try:
                if isinstance(sample, BadSample):
                    raise sample
                name = f"{entry.path}:{sample.key}"
                yield decode_image(sample.image, name)
                names.append(name)
                found.append({"row": row})
            except BadSample as bad:
                summary.skip(bad.reason, bad.where)
                found.append({"row": row, "bad": bad.reason})

    model = loaded(job.clip, job.runtime)
    parts = [model.encode_images(batch, BATCH).numpy() for batch in _batches(images())]
    vectors = np.concatenate(parts) if parts else np.zeros((0, model.embed_dim))
    if names:
        check_finite(vectors, job.clip.name, names)
    summary.num_texts = len(found)
    save_array(shard_file(job.folder, shard, "npy"), vectors.astype(np.float16))
    table = pa.Table.from_pylist(found, pa.schema({"row": pa.int32(), "bad": pa.string()}))
    write_shard_file(file, table, made, vars(summary))  # last: it marks both as whole
    return summary


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    for _, group in groupby(enumerate(items), key=lambda numbered: numbered[0] // BATCH):
        yield [item for _, item in group]


def read_embeddings(folder: Path, shard: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return rows, ascending, and unit vectors, (N, D), of the usable images of a shard."""
    table = pq.read_table(shard_file(folder, shard), page_checksum_verification=True)
    vectors = np.load(shard_file(folder, shard, "npy")).astype(np.float32)
    rows = table["row"].to_numpy()[table["bad"].is_null().to_numpy()]
    return rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def score_texts(job: ClipJob, shard: int) -> Summary:
    """Write the cosine of each remaining text with its image: `unit`, the text's index in its shard, and `score`."""
    file, entry = shard_file(job.folder, shard), opened(job.dataset).index.shards[shard]
    made = made_from(asdict(entry), VERSION)
    if record := finished_summary(file, made):
        return Summary.of(record)
    assert job.survivors
    places = job.survivors.places(shard)
    identity = pq.read_table(
        shard_file(job.survivors.texts, shard), columns=IDENTITY, page_checksum_verification=True
    ).take(places)
    texts = texts_of(opened(job.dataset), shard) if len(places) else texts_schema().empty_table()
    named = dict(
        zip(zip(*(texts[name].to_pylist() for name in NAME), strict=True), texts["text"].to_pylist(), strict=True)
    )
    remaining = [named[key] for key in zip(*(identity[name].to_pylist() for name in NAME), strict=True)]
    rows, vectors = read_embeddings(job.embedded, shard)
    of_text = vectors[np.searchsorted(rows, identity["row"].to_numpy())]
    model = loaded(job.clip, job.runtime)
    scores = [
        (model.encode_texts(remaining[start : start + BATCH], BATCH).numpy() * of_text[start : start + BATCH]).sum(
            axis=1
        )
        for start in range(0, len(remaining), BATCH)
    ]
    for part, start in zip(scores, range(0, len(remaining), BATCH), strict=True):
        check_finite(part, job.clip.name, remaining[start : start + BATCH])
    table = pa.table(
        {"unit": pa.array(places, pa.int32()), "score": pa.array(np.concatenate([*scores, []]), pa.float32())}
    )
    summary = Summary(num_texts=len(remaining))
    write_shard_file(file, table, made, vars(summary))
    return summary
