"""Outcome of all filters: the subset of texts that passed, and the verdict on every text. One shard is one task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vfm.data import SUBSET_FOLDER, stored_subset, subset_index_rows, unpacked_uids
from vfm_curation.balance.subset import kept_languages, kept_samples
from vfm_curation.filters.survivors import VERDICTS_FOLDER, Survivors, shard_file
from vfm_curation.filters.texts import IDENTITY, digest
from vfm_curation.shard_files import finished_summary, hash_of_source, made_from, write_shard_file
from vfm_curation.summaries import TaskSummary

NUM_EXAMPLES = 5  # for each reason
VERSION = 2
Place = tuple[int, int, str, int]  # shard, row, language, text_index


@dataclass(frozen=True)
class OutcomeJob:
    """Settings that the tasks share. A code is an index into `reasons`, and the results go to `folder`.

    `packed` says whether uids take 16 bytes in the subset and the verdicts.
    """

    survivors: Survivors
    reasons: tuple[str, ...]
    folder: Path
    packed: bool


@dataclass
class OutcomeSummary(TaskSummary):
    """Counts of a shard.

    `texts` are all texts, `index` holds rows of core's index of the subset.
    """

    num_kept: int = 0
    index: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Place]] = field(default_factory=dict)


def write_outcome(job: OutcomeJob, shard: int) -> OutcomeSummary:
    """Write the shard's files of the subset and of the verdicts.

    Texts that pass have probability 1. Of a balanced subset only the kept texts were filtered, and a sampler that draws
    by the probabilities must not draw these a second time. The verdicts are shard, row, uid, language, text_index and
    `reason` of every text, where '' means that it passed. Uids are in the form of the subset's.
    """
    file = shard_file(job.folder / SUBSET_FOLDER, shard)
    codes = job.survivors.codes_of(shard)
    source_hash = made_from(
        hash_of_source(job.survivors.file(shard)), digest(codes.tobytes()).hex(), job.reasons, job.packed, VERSION
    )
    finished = finished_summary(file, source_hash)
    if finished:
        return OutcomeSummary.of(finished)
    table = job.survivors.measured(shard, IDENTITY)
    if not job.packed:
        table = table.set_column(IDENTITY.index("uid"), "uid", unpacked_uids(table["uid"]))
    # Parquet needs a tenth less time for columns that are never missing.
    table = table.cast(pa.schema([field.with_nullable(False) for field in table.schema]))
    reasons = pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(job.reasons, pa.string()))
    verdicts = table.append_column("reason", reasons)
    passed = table.filter(pa.array(codes == 0))
    passed = passed.append_column("probability", pa.array(np.ones(len(passed), np.float32)))
    passed = passed.append_column("kept", pa.array(np.ones(len(passed), np.bool_)))
    counts = np.bincount(codes, minlength=len(job.reasons)).tolist()
    summary = OutcomeSummary(num_texts=len(codes), num_kept=counts[0], index=subset_index_rows(shard, passed))
    for code, reason in enumerate(job.reasons):
        if code and counts[code]:
            summary.dropped[reason] = summary.dropped.get(reason, 0) + counts[code]
            rows = verdicts.take(np.flatnonzero(codes == code)[:NUM_EXAMPLES])
            places = [rows[name].to_pylist() for name in ("shard", "row", "language", "text_index")]
            summary.examples[reason] = list(zip(*places, strict=True))
    write_shard_file(shard_file(job.folder / VERDICTS_FOLDER, shard), verdicts, source_hash, {})
    stored = stored_subset(passed, packed=job.packed)
    write_shard_file(file, stored, source_hash, vars(summary))  # last: it marks both as whole
    return summary


@dataclass
class Outcome:
    """Totals of kept texts, and of dropped ones by reason with the first examples."""

    num_texts: int = 0
    num_samples: int = 0
    languages: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Place]] = field(default_factory=dict)
    index: list[dict[str, Any]] = field(default_factory=list)

    def add(self, summary: OutcomeSummary) -> None:
        """Add the counts of a shard, in any order."""
        self.num_texts += summary.num_kept
        self.num_samples += kept_samples(summary.index)
        self.languages |= kept_languages(summary.index)
        self.index += summary.index
        self.dropped.update(summary.dropped)
        for reason, places in summary.examples.items():
            self.examples[reason] = first_places([*self.examples.get(reason, []), *places])


def first_places(places: Iterable[Place]) -> list[Place]:
    """Select the first examples in the order of the pool."""
    # Places read from JSON are lists.
    return sorted((shard, row, language, index) for shard, row, language, index in places)[:NUM_EXAMPLES]
