"""Apply filters to a pool, and write the subset, the reason of every other text, and panels (`curation.filter`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from vfm.data import SUBSET_FOLDER, open_dataset, write_subset_index
from vfm.plugin import (
    BarsPanel,
    Context,
    CuratedSubset,
    LinkTable,
    Panel,
    Pool,
    Preflight,
    Ref,
    TablePanel,
    UserError,
    how_to_install,
)
from vfm_curation.engine import kept_workers, run_shards
from vfm_curation.filters.outcome import Outcome, OutcomeJob, Place, write_outcome
from vfm_curation.filters.remaining import Pass
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.stages import Filter, FilterPool
from vfm_curation.filters.survivors import VERDICTS_FOLDER
from vfm_curation.filters.texts import opened
from vfm_curation.pool_texts import shortened, texts_of_rows
from vfm_curation.shard_files import all_uids_packed, link_files
from vfm_curation.summaries import with_progress

MAX_UNREADABLE = 10  # shards that are passed over to find one whose columns can be checked


def check_filters(config: FilterPool, ctx: Preflight) -> None:
    """Check that each filter can run.

    Languages must exist, heads must fit their models, bounds must be in reach, and packages must be installed.

    Raises:
        UserError: One line for each mistake.
    """
    no_images = _has_no_images(config, ctx)
    lines = []
    for number, pool_filter in enumerate(config.filters):
        errors = list(pool_filter.errors(ctx, config.pool))
        if pool_filter.package and not find_spec(pool_filter.package[0]):
            module, extra = pool_filter.package
            errors.append(f"needs {module}: {how_to_install(f'vfm-curation[{extra}]')}")
        errors += _missing_columns(pool_filter, config.pool, ctx)
        if pool_filter.reads_images and no_images:
            errors.append(f"reads images, but '{config.pool}' has only texts")
        lines += [f"filters[{number}] {pool_filter.type}: {line}" for line in errors]
    if lines:
        raise UserError("\n".join(lines))


def _missing_columns(pool_filter: Filter, pool: Ref[Any], ctx: Preflight) -> Iterator[str]:
    """Yield a line if the first readable shard of a pool lacks a column that a filter reads.

    A pool to come is not checked, and neither is one whose first shards cannot be read.
    """
    artifact = ctx.artifact(pool)
    if not artifact or not pool_filter.values:
        return
    index = open_dataset(artifact).index
    for shard in range(min(len(index.shards), MAX_UNREADABLE + 1)):
        try:
            reader = index.open(shard)
        except UserError:  # the run skips a shard that cannot be read
            continue
        try:
            reader.values(np.empty(0, dtype=np.int64), sorted(pool_filter.values))
        except UserError as error:
            yield str(error)
        return


def _has_no_images(config: FilterPool, ctx: Preflight) -> bool:
    """Check whether the pool has no images. Return False if that is unknown."""
    pool = ctx.artifact(config.pool)
    if pool:
        return not open_dataset(pool).index.spec.images
    stage = ctx.stage(config.pool)
    return stage is not None and (issubclass(stage.makes, LinkTable) or getattr(stage, "images", True) is False)


def filter_pool(config: FilterPool, ctx: Context) -> CuratedSubset:
    """Write the subset of the texts that pass, and `verdicts/` with the reason of every text."""
    dataset = ctx.load(config.pool)
    reading = [pool_filter.reason for pool_filter in config.filters if pool_filter.reads_images]
    if reading and not open_dataset(dataset).index.spec.images:
        raise UserError(f"{config.name}: {', '.join(reading)}: reads images, but '{config.pool}' has only texts")
    run = FilterRun(ctx, config.pool, config.filters, config.runtime, config.max_bad_fraction)
    with kept_workers(config.runtime):
        run.run()
        outcome = _write_outcome(run, ctx)
    if not outcome.num_texts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.dropped.most_common())
        raise UserError(f"{config.name}: no text of '{config.pool}' passes all filters: {reasons or 'it has no texts'}")
    ctx.panel(_funnel(run.passes))
    for step in run.passes:
        if step.details:
            ctx.panel(TablePanel.model_validate(step.details))
    ctx.panel(_seconds(run.passes))
    ctx.panel(_examples(run, outcome))
    values = {"curation/kept_texts": outcome.num_texts, "curation/kept_samples": outcome.num_samples}
    ctx.emit("metrics", step=1, samples=outcome.num_samples, values=values)
    # The pool of a subset is the pool that it was drawn from.
    if isinstance(dataset, Pool):
        pool = dataset
    else:
        pool = Pool.load(dataset.linked(dataset.pool))
    return CuratedSubset.create(
        ctx.directory,
        texts=dataset.texts if isinstance(dataset, CuratedSubset) else "every",
        num_samples=outcome.num_samples,
        languages=[language for language in dataset.languages if language in outcome.languages],
        pool=pool.reference(ctx.directory),
    )


def _write_outcome(run: FilterRun, ctx: Context) -> Outcome:
    """Write the subset and the verdicts by tasks, and the index of the subset."""
    packed = all_uids_packed(map(run.survivors.file, range(run.num_shards)))
    job = OutcomeJob(run.survivors, run.reasons, ctx.work, packed)
    outcome = Outcome()
    for folder in (SUBSET_FOLDER, VERDICTS_FOLDER):
        (ctx.work / folder).mkdir(exist_ok=True)
    summaries = run_shards(write_outcome, job, range(run.num_shards), run.runtime)
    for summary in with_progress(ctx, summaries, run.num_shards):
        outcome.add(summary)
    if outcome.num_texts:
        write_subset_index(ctx.directory, outcome.index)
        for folder in (SUBSET_FOLDER, VERDICTS_FOLDER):  # the subset first: its files mark both as whole
            link_files(ctx.work / folder, ctx.directory / folder)
    return outcome


def _funnel(passes: Sequence[Pass]) -> Panel:
    first = passes[0]
    last = passes[-1]
    share = last.num_texts / max(1, first.num_texts)
    note = f"Texts that remain after each filter; {share:.1%} of them, with {last.num_images:,} images, pass all."
    labels = [step.name for step in passes]
    values = [float(step.num_texts) for step in passes]
    return BarsPanel(title="Filter funnel", note=note, order=10, labels=labels, values=values, x_label="texts")


def _seconds(passes: Sequence[Pass]) -> Panel:
    """Build the table of the funnel with times. It is a separate panel because its file differs between equal runs."""
    rows: list[list[str | float | int | None]] = []
    for step in passes:
        rows.append([step.name, step.num_texts, step.num_images, round(step.seconds, 2)])
    return TablePanel(
        title="Filter seconds", note="What remains after each filter, and how long it took, measuring included.",
        order=20, columns=["filter", "texts", "images", "seconds"], rows=rows,
    )  # fmt: skip


def _examples(run: FilterRun, outcome: Outcome) -> Panel:
    source = opened(run.dataset)
    samples: dict[int, set[int]] = {}  # rows of each shard
    for places in outcome.examples.values():
        for shard, row, _, _ in places:
            samples.setdefault(shard, set()).add(row)
    texts: dict[Place, dict[str, Any]] = {}
    for shard, numbers in samples.items():
        for text in texts_of_rows(source, shard, np.array(sorted(numbers))).to_pylist():
            texts[shard, text["row"], text["language"], text["text_index"]] = text
    rows: list[list[str | float | int | None]] = []
    for reason, places in outcome.examples.items():
        for place in places:
            text = texts[place]
            rows.append([reason, outcome.dropped[reason], text["language"], shortened(text["text"]), text["uid"]])
    return TablePanel(
        title="Dropped texts", note="The first texts that were dropped for each reason.", order=30,
        columns=["reason", "texts", "language", "text", "uid"], rows=sorted(rows, key=lambda row: str(row[0])),
    )  # fmt: skip
