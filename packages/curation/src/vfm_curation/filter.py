"""Work of `curation.filter`: a pool through its filters; what remains, the reason of every other text, and panels."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vfm.data import SUBSET_FILE, open_dataset, subset_schema
from vfm.plugin import BarsPanel, Context, CuratedSubset, LinkTable, Panel, Pool, Preflight, TablePanel, UserError
from vfm_curation.filters.run import FilterRun, Pass
from vfm_curation.filters.survivors import VERDICTS_FILE
from vfm_curation.filters.texts import IDENTITY, opened
from vfm_curation.pool_texts import shortened, texts_of
from vfm_curation.stages import FilterPool

NUM_EXAMPLES = 5  # for each reason


def check_filters(config: FilterPool, ctx: Preflight) -> None:
    """Check each filter: languages exist, heads fit their models, bounds can be reached, packages are installed.

    Raises:
        UserError: one line for each mistake.
    """
    no_images = _has_no_images(config, ctx)
    lines = []
    for number, one in enumerate(config.filters):
        errors = list(one.errors(ctx, config.pool))
        if one.package and not find_spec(one.package[0]):
            errors.append(f"needs {one.package[0]}: pip install 'vfm-curation[{one.package[1]}]'")
        if one.reads_images and no_images:
            errors.append(f"reads images, but '{config.pool}' has only texts")
        lines += [f"filters[{number}] {one.type}: {line}" for line in errors]
    if lines:
        raise UserError("\n".join(lines))


def _has_no_images(config: FilterPool, ctx: Preflight) -> bool:
    """Return whether the pool has no images, as far as that is known."""
    if pool := ctx.artifact(config.pool):
        return not open_dataset(pool).index.spec.images
    stage = ctx.stage(config.pool)
    return stage is not None and (issubclass(stage.makes, LinkTable) or getattr(stage, "images", True) is False)


def filter_pool(config: FilterPool, ctx: Context) -> CuratedSubset:
    """Write `subset.parquet`, the texts that pass, and `verdicts.parquet`, every text with its reason."""
    dataset = ctx.load(config.pool)
    reading = [one.reason for one in config.filters if one.reads_images]
    if reading and not open_dataset(dataset).index.spec.images:
        raise UserError(f"{config.name}: {', '.join(reading)}: reads images, but '{config.pool}' has only texts")
    run = FilterRun(ctx, config.pool, config.filters, config.runtime)
    run.run()
    outcome = write_outcome(run, ctx.directory)
    if not outcome.num_texts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.dropped.most_common())
        raise UserError(f"{config.name}: no text of '{config.pool}' passes all filters: {reasons or 'it has no texts'}")
    for panel in (_funnel(run.passes), _seconds(run.passes), _examples(run, outcome)):
        ctx.panel(panel)
    values = {"curation/kept_texts": outcome.num_texts, "curation/kept_samples": outcome.num_samples}
    ctx.emit("metrics", step=1, samples=outcome.num_samples, values=values)
    pool = dataset if isinstance(dataset, Pool) else Pool.load(dataset.linked(dataset.pool))
    return CuratedSubset.create(
        ctx.directory,
        texts=dataset.texts if isinstance(dataset, CuratedSubset) else "every",
        num_samples=outcome.num_samples,
        languages=[language for language in dataset.languages if language in outcome.languages],
        pool=pool.reference(ctx.directory),
    )


@dataclass
class Outcome:
    """Counts of kept texts, and of dropped ones by reason with the (shard, row, language, text_index) of examples."""

    num_texts: int = 0
    num_samples: int = 0
    languages: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, int, str, int]]] = field(default_factory=lambda: defaultdict(list))


def write_outcome(run: FilterRun, directory: Path) -> Outcome:
    """Write `subset.parquet` and `verdicts.parquet`, one row group for each shard.

    Texts that pass have probability 1. Of a balanced subset only the kept texts were filtered, and a sampler that draws
    by the probabilities must not draw these a second time. `verdicts.parquet` has shard, row, uid, language, text_index
    and `reason` of every text: '' for those that pass.
    """
    outcome, subset = Outcome(), subset_schema()
    verdicts = pa.schema([*(subset.field(name) for name in IDENTITY), ("reason", pa.string())])
    with (
        pq.ParquetWriter(directory / SUBSET_FILE, subset, compression="zstd") as kept,
        pq.ParquetWriter(directory / VERDICTS_FILE, verdicts, compression="zstd") as every,
    ):
        for table, codes in run.verdicts():
            reasons = [run.reasons[code] for code in codes.tolist()]
            table = table.append_column("reason", pa.array(reasons, pa.string()))
            every.write_table(table.select(verdicts.names).cast(verdicts))
            _count(outcome, table)
            passed = table.filter(pa.array(codes == 0))
            if len(passed):
                certain = {"probability": np.ones(len(passed), np.float32), "kept": np.ones(len(passed), np.bool_)}
                for name, values in certain.items():
                    passed = passed.append_column(name, pa.array(values))
                kept.write_table(passed.select(subset.names).cast(subset))
    return outcome


def _count(outcome: Outcome, table: pa.Table) -> None:
    columns = [table[name].to_pylist() for name in ("reason", "shard", "row", "language", "text_index")]
    rows = set()
    for reason, *place in zip(*columns, strict=True):
        if reason:
            outcome.dropped[reason] += 1
            if len(outcome.examples[reason]) < NUM_EXAMPLES:
                outcome.examples[reason].append(tuple(place))
        else:
            outcome.num_texts += 1
            outcome.languages.add(place[2])
            rows.add(place[1])
    outcome.num_samples += len(rows)


def _funnel(passes: Sequence[Pass]) -> Panel:
    first, last = passes[0], passes[-1]
    share = last.num_texts / max(1, first.num_texts)
    note = f"Texts that remain after each filter; {share:.1%} of them, with {last.num_images:,} images, pass all."
    labels, values = [one.name for one in passes], [float(one.num_texts) for one in passes]
    return BarsPanel(title="Filter funnel", note=note, order=10, labels=labels, values=values, x_label="texts")


def _seconds(passes: Sequence[Pass]) -> Panel:
    """Return the funnel as numbers with times. It is a panel of its own since its file differs between equal runs."""
    rows: list[list[str | float | int | None]] = [
        [one.name, one.num_texts, one.num_images, round(one.seconds, 2)] for one in passes
    ]
    return TablePanel(
        title="Filter seconds", note="What remains after each filter, and how long it took, measuring included.",
        order=20, columns=["filter", "texts", "images", "seconds"], rows=rows,
    )  # fmt: skip


def _examples(run: FilterRun, outcome: Outcome) -> Panel:
    source = opened(run.dataset)
    rows_of = functools.lru_cache(1)(lambda shard: texts_of(source, shard).to_pylist())
    places = sorted((shard, place, reason) for reason, found in outcome.examples.items() for shard, *place in found)
    rows: list[list[str | float | int | None]] = []
    for shard, place, reason in places:
        text = next(one for one in rows_of(shard) if [one["row"], one["language"], one["text_index"]] == place)
        rows.append([reason, outcome.dropped[reason], text["language"], shortened(text["text"]), text["uid"]])
    return TablePanel(
        title="Dropped texts", note="The first texts that were dropped for each reason.", order=30,
        columns=["reason", "texts", "language", "text", "uid"], rows=sorted(rows, key=lambda row: str(row[0])),
    )  # fmt: skip
