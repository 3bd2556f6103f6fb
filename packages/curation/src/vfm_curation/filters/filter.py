"""Work of `curation.filter`: a pool through its filters; what remains, the reason of every other text, and panels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.util import find_spec

from vfm.data import SUBSET_FOLDER, open_dataset, write_subset_index
from vfm.plugin import (
    BarsPanel,
    Context,
    CuratedSubset,
    LinkTable,
    Panel,
    Pool,
    Preflight,
    TablePanel,
    UserError,
    how_to_install,
)
from vfm_curation.engine import run_shards
from vfm_curation.filters.outcome import Outcome, OutcomeJob, write_outcome
from vfm_curation.filters.run import FilterRun, Pass
from vfm_curation.filters.stages import FilterPool
from vfm_curation.filters.survivors import VERDICTS_FOLDER
from vfm_curation.filters.texts import opened
from vfm_curation.pool_texts import shortened, texts_of
from vfm_curation.summaries import with_progress


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
            errors.append(f"needs {one.package[0]}: {how_to_install(f'vfm-curation[{one.package[1]}]')}")
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
    """Write the subset of the texts that pass, and `verdicts/`, every text with its reason."""
    dataset = ctx.load(config.pool)
    reading = [one.reason for one in config.filters if one.reads_images]
    if reading and not open_dataset(dataset).index.spec.images:
        raise UserError(f"{config.name}: {', '.join(reading)}: reads images, but '{config.pool}' has only texts")
    run = FilterRun(ctx, config.pool, config.filters, config.runtime, config.max_bad_fraction)
    run.run()
    outcome = _write_outcome(run, ctx)
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


def _write_outcome(run: FilterRun, ctx: Context) -> Outcome:
    """Write the subset and the verdicts by tasks, and the index of the subset."""
    job, outcome = OutcomeJob(run.survivors, run.reasons, ctx.work), Outcome()
    for folder in (SUBSET_FOLDER, VERDICTS_FOLDER):
        (ctx.work / folder).mkdir(exist_ok=True)
    found = run_shards(write_outcome, job, range(run.num_shards), run.runtime)
    for summary in with_progress(ctx, found, run.num_shards):
        outcome.add(summary)
    if outcome.num_texts:
        write_subset_index(ctx.directory, outcome.index)
        for folder in (SUBSET_FOLDER, VERDICTS_FOLDER):  # the subset first: its files mark both as whole
            (ctx.work / folder).rename(ctx.directory / folder)
    return outcome


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
