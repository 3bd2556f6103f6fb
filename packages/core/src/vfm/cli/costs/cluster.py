"""Simulate a training step on a cluster for `vfm plan --gpus`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich import box
from rich.table import Table

from vfm.base import UserError
from vfm.flow.plan.estimate import ABSENT, known_artifacts
from vfm.flow.plan.scaling import step_loads
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe, load_recipe
from vfm.interfaces import Training, load_plugins, stage_types
from vfm.train.cost.cluster import CARDS, JITTER, LINK_EFFICIENCY, Card, Load, Step, shardings, simulate

GIB = 2**30


def cluster_lines(
    recipe: str, store: Path, overrides: list[str] | None, gpus: str, card: str, utilisation: float
) -> Iterator[Table | str]:
    """Simulate the steps of each training stage of a recipe on a cluster.

    Args:
        recipe: Name or path of the recipe.
        store: Folder of artifacts and runs.
        overrides: Values that override the recipe.
        gpus: Numbers of devices.
        card: Name of the card.
        utilisation: Fraction of the peak that is reached (MFU), 0 to 1.

    Yields:
        A table for each stage, then notes.

    Raises:
        UserError: If the recipe is wrong, a card is not known, or a batch cannot be divided among the devices.
    """
    devices = parse_devices(gpus)
    device = find_card(card)
    loaded = load_recipe(recipe, stage_types(load_plugins()), overrides or (), absent_path=ABSENT)
    artifacts, _ = known_artifacts(loaded, Store(store))
    loads = step_loads(loaded, artifacts)
    for stage in loaded.stages:
        if isinstance(stage, Training) and stage.name in loads:
            title = f"{stage.name}: {stage.global_batch_size:,} samples a step on {card.upper()}, simulated"
            yield cluster_table(stage, loads[stage.name], devices, device, utilisation, title)
    yield from cluster_notes(loaded, loads, utilisation)


def parse_devices(text: str) -> list[int]:
    """Parse the numbers of devices in `--gpus`, such as "8,64,512".

    Raises:
        UserError: If it is something else.
    """
    try:
        numbers = list(map(int, text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"--gpus: expected numbers of devices such as 8,64,512; got {text}")
    return numbers


def find_card(name: str) -> Card:
    """Look up a device by its name.

    Raises:
        UserError: If it is not known.
    """
    if name.lower() not in CARDS:
        raise UserError(f"--card: expected one of {', '.join(CARDS)}; got {name}")
    return CARDS[name.lower()]


def cluster_table(stage: Training, load: Load, devices: list[int], card: Card, utilisation: float, title: str) -> Table:
    """Build the table of a stage's steps by number of devices and sharding.

    The fastest step of each number is bold.

    Args:
        stage: The training stage.
        load: Its work and memory.
        devices: Numbers of devices.
        card: Speeds of the card.
        utilisation: Fraction of the peak that is reached (MFU), 0 to 1.
        title: Title of the table.

    Raises:
        UserError: If the batch cannot be divided among the devices.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    table.title = title
    for name in ("GPUs", "sharding", "micro-batch", "GiB", "s/step", "waits", "samples/s", "efficiency"):
        table.add_column(name, justify="left" if name == "sharding" else "right", no_wrap=True)
    alone = card.peak_flops * utilisation / load.flops
    for number in devices:
        try:
            steps = [
                simulate(load, card, number, sharding, stage.global_batch_size, utilisation)
                for sharding in shardings(number, card)
            ]
        except ValueError as error:
            raise UserError(f"--gpus: {stage.name}: {error}") from None
        best = max(step.samples_per_second for step in steps)
        for step in steps:
            is_best = bool(step.micro_batch) and step.samples_per_second == best
            table.add_row(*_cells(step, alone * number), style="bold" if is_best else "")
    return table


def cluster_notes(recipe: Recipe, loads: Mapping[str, Load], utilisation: float) -> Iterator[str]:
    """Yield the assumptions behind the table, and the stages that it lacks.

    Args:
        recipe: The recipe.
        loads: Work and memory of its training stages.
        utilisation: Fraction of the peak that is reached (MFU), 0 to 1.
    """
    yield (
        f"assumptions: a device reaches {100 * utilisation:g} % of its peak (--mfu), a link {100 * LINK_EFFICIENCY:g} %"
        f" of its rate; machines of 8; {100 * JITTER:g} % of waits for each doubling of the machines; data are always"
        " ready. 100 % efficiency: no waits and no micro-batches"
    )
    missing = [stage.name for stage in recipe.stages if isinstance(stage, Training) and stage.name not in loads]
    if missing:
        yield f"not simulated, since their cost is not known: {', '.join(missing)}"


def _cells(step: Step, perfect: float) -> list[str]:
    if not step.micro_batch:
        return [f"{step.devices:,}", step.sharding, "does not fit", f"{step.memory / GIB:.0f}", *["-"] * 4]
    return [
        f"{step.devices:,}",
        step.sharding,
        f"{step.micro_batch:,}",
        f"{step.memory / GIB:.0f}",
        f"{step.seconds:.3g}",
        f"{100 * step.exposed / step.seconds:.0f} %",
        f"{step.samples_per_second:,.0f}",
        f"{100 * step.samples_per_second / perfect:.0f} %",
    ]
