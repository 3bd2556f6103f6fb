"""The table of `vfm plan --estimate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from vfm.flow.plan.estimate import ABSENT, estimate_costs, known_artifacts, with_steps
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe, load_recipe
from vfm.interfaces import Cost, Evaluation, Stage, Training, load_plugins, seconds, stage_types

COLUMNS = ("params", "weights", "grads", "optim", "EMA", "activ.", "sum", "FLOP", "time", "disk")
GIB = 2**30


def estimate_lines(
    recipe: str, store: Path, overrides: list[str] | None, peak_flops: float, mfu: float
) -> Iterator[Table | str]:
    """Yield the table of the costs of all stages of a recipe, and lines about it.

    Args:
        recipe: Name or path of the recipe.
        store: Folder of artifacts and runs.
        overrides: Values that override the recipe.
        peak_flops: Peak of a device, in operations per second.
        mfu: Fraction of the peak that is reached, 0 to 1.

    Raises:
        UserError: If the recipe is wrong, or a stage's settings do not fit its models.
    """
    known = stage_types(load_plugins())
    loaded = load_recipe(recipe, known, overrides or (), absent_path=ABSENT)
    artifacts, missing = known_artifacts(loaded, Store(store))
    planned = {stage.name: stage for stage in loaded.stages}
    loaded = with_steps(loaded, artifacts)
    costs = estimate_costs(loaded, artifacts)
    yield cost_table(loaded, costs, peak_flops, mfu)
    yield from epoch_notes(planned, loaded)
    yield from notes(loaded, costs, peak_flops, mfu)
    if missing:
        yield f"not looked for in the store: {missing}"


def cost_table(recipe: Recipe, costs: Mapping[str, Cost], peak_flops: float, utilisation: float) -> Table:
    """Build the table of the costs of the stages, one per row, and the totals.

    It has at most 80 columns. Memory is the peak of a process in GiB. Disk includes the checkpoints of a training stage
    while it runs.

    Args:
        recipe: The recipe.
        costs: Cost of each stage.
        peak_flops: Peak of a device, in operations per second.
        utilisation: Fraction of the peak that is reached (MFU), 0 to 1.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    table.title = f"{recipe.name}: GiB of memory a process, GiB of disk"
    table.add_column("stage", max_width=14, overflow="ellipsis", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for stage in recipe.stages:
        time = _seconds(stage, costs, peak_flops, utilisation)
        table.add_row(stage.name, *_cells(stage, costs.get(stage.name), time))
    table.add_section()
    table.add_row("total", *_totals(recipe, costs, peak_flops, utilisation))
    return table


def notes(recipe: Recipe, costs: Mapping[str, Cost], peak_flops: float, utilisation: float) -> Iterator[str]:
    """Yield the assumptions behind the numbers, and the parts that are not included.

    Args:
        recipe: The recipe.
        costs: Cost of each stage.
        peak_flops: Peak of a device, in operations per second.
        utilisation: Fraction of the peak that is reached (MFU), 0 to 1.
    """
    yield (
        f"time: {peak_flops / 1e12:g} TFLOP/s a device, of which {100 * utilisation:g} % are reached; data are always"
        " ready (--peak-tflops, --mfu)"
    )
    yield "memory: without CUDA's own, the allocator's gaps and what other processes send"
    trained = []
    for name, cost in costs.items():
        if 0 < cost.trained < (cost.parameters or 0):
            trained.append(f"{name} {_count(cost.trained)} of {_count(cost.parameters)}")
    if trained:
        yield f"parameters that are trained: {', '.join(trained)}"
    for name, cost in costs.items():
        if cost.unknown:
            yield f"{name}: unknown: {', '.join(cost.unknown)}"
    evaluations = []
    trainings = []
    others = []
    for stage in recipe.stages:
        if stage.name in costs:
            continue
        if isinstance(stage, Evaluation):
            evaluations.append(stage.name)
        elif isinstance(stage, Training):
            trainings.append(stage.name)
        else:
            others.append(stage.name)
    if evaluations:
        yield f"not estimated, evaluations: {', '.join(evaluations)}"
    if trainings:
        yield f"not estimated, training stages: {', '.join(trainings)}"
    if others:
        yield f"not estimated: {', '.join(others)}"


def epoch_notes(planned: Mapping[str, Stage], recipe: Recipe) -> Iterator[str]:
    """Yield the number of steps of each training whose length is given in epochs.

    Args:
        planned: The stages as given, by name.
        recipe: The recipe, with steps in place of epochs where the data exist.
    """
    for stage in recipe.stages:
        before = planned[stage.name]
        if isinstance(stage, Training) and isinstance(before, Training) and before.epochs and not stage.epochs:
            yield f"{stage.name}: {before.epochs:g} epochs are {stage.num_steps:,} steps of {stage.global_batch_size}"


def _seconds(stage: Stage, costs: Mapping[str, Cost], peak_flops: float, utilisation: float) -> float | None:
    cost = costs.get(stage.name)
    if not cost:
        return None
    return seconds(cost, stage.runtime.processes, peak_flops, utilisation)


def _cells(stage: Stage, cost: Cost | None, time: float | None) -> list[str]:
    if cost is None or cost == Cost(unknown=cost.unknown):
        is_unknown = cost is not None or isinstance(stage, Training)
        return ["unknown" if is_unknown else "-", *["-"] * (len(COLUMNS) - 1)]
    parts: Sequence[int | None] = [None] * 6
    memory = cost.memory
    if memory:
        parts = [memory.weights, memory.gradients, memory.optimizer, memory.average, memory.activations, memory.total]
    return [_count(cost.parameters), *map(_gib, parts), _flops(cost.flops), _duration(time), _gib(cost.disk)]


def _totals(recipe: Recipe, costs: Mapping[str, Cost], peak_flops: float, utilisation: float) -> list[str]:
    """Build the cells of the totals.

    They are the largest memory, and the sums of operations, time and disk.
    """
    time = 0.0
    for stage in recipe.stages:
        time += _seconds(stage, costs, peak_flops, utilisation) or 0
    flops = 0.0
    disk = 0
    memories = []
    for cost in costs.values():
        flops += cost.flops or 0
        disk += cost.disk or 0
        if cost.memory:
            memories.append(cost.memory.total)
    memory = max(memories, default=None)
    return [*[""] * 6, _gib(memory), _flops(flops or None), _duration(time or None), _gib(disk or None)]


def _count(number: int | None) -> str:
    if number is None:
        return "-"
    if number >= 1e9:
        return f"{number / 1e9:.2f}B"
    return f"{number / 1e6:.3g}M"


def _flops(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.1e}".replace("e+", "e")


def _gib(size: int | None) -> str:
    if size is None:
        return "-"
    if size >= GIB / 20 or not size:
        return f"{size / GIB:.1f}"
    return f"{size / GIB:.2g}"


def _duration(time: float | None) -> str:
    if time is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if time >= 2 * length:
            return f"{time / length:.3g} {unit}"
    return f"{time:.2g} s"
