"""Estimates of the cost of every stage before it runs, even if the data of a recipe are not on this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vfm.base import UserError, load_function
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe
from vfm.interfaces import FACTS_FILE, Cost, Preflight, Stage, Training, refs

ABSENT = "(absent)"  # placeholder for a path that the user of a recipe must set


def known_artifacts(recipe: Recipe, store: Store) -> tuple[dict[str, Path], str]:
    """Find the folders of existing inputs, and the reason why artifacts of earlier runs are missing, if they are."""
    folders: dict[str, Path] = {}
    missing = ""
    try:
        for step in make_plan(recipe, store):
            if step.status == "cached":
                folders[step.stage.name] = step.slot.artifact
    except UserError as error:
        missing = str(error).splitlines()[0]
    names = {stage.name for stage in recipe.stages}  # stage names take precedence over folders, as in the plan
    saved: dict[str, Path] = {}
    for stage in recipe.stages:
        for _, ref in refs(stage):
            if ref not in names and (Path(ref) / FACTS_FILE).is_file():
                saved[str(ref)] = Path(ref)
    return {**saved, **folders}, missing


def with_steps(recipe: Recipe, artifacts: Mapping[str, Path]) -> Recipe:
    """Replace the epochs of each training by its number of steps, where the data exist.

    Raises:
        UserError: If a stage's settings do not fit the number of steps.
    """
    ctx = recipe.preflight(artifacts)
    stages = []
    for stage in recipe.stages:
        stages.append(stage.with_steps(ctx.artifact) if isinstance(stage, Training) else stage)
    return replace(recipe, stages=tuple(stages))


def estimate_costs(recipe: Recipe, artifacts: Mapping[str, Path]) -> dict[str, Cost]:
    """Estimate the cost of each stage that has one, by name.

    Raises:
        UserError: If a stage's settings do not fit its models.
    """
    ctx = recipe.preflight(artifacts)
    return {stage.name: estimate_cost(stage, ctx) for stage in recipe.stages if stage.costs}


def known_costs(recipe: Recipe, store: Store, names: Collection[str]) -> dict[str, Cost]:
    """Estimate the costs of some stages, as far as that is possible here.

    Args:
        recipe: The recipe.
        store: Store of the artifacts.
        names: Names of the stages.

    Returns:
        Costs by name.
    """
    artifacts, _ = known_artifacts(recipe, store)
    costs = {}
    with suppress(UserError):  # the preflight reports mistakes
        recipe = with_steps(recipe, artifacts)
    ctx = recipe.preflight(artifacts)
    for stage in recipe.stages:
        with suppress(UserError):
            if stage.costs and stage.name in names:
                costs[stage.name] = estimate_cost(stage, ctx)
    return costs


def estimate_cost(stage: Stage, ctx: Preflight) -> Cost:
    """Estimate the cost of a stage that has one.

    Raises:
        UserError: If its settings do not fit its models.
    """
    if isinstance(stage, Training) and stage.epochs is not None:  # the data have not been read
        cost = estimate_cost(stage.model_copy(update={"steps": 1, "epochs": None}), ctx)
        return replace(cost, flops=None, unknown=(*cost.unknown, f"the number of steps in {stage.epochs:g} epochs"))
    try:
        cost = load_function(stage.costs)(stage, ctx)
    except ImportError as error:
        return Cost(unknown=(f"what needs {error.name or error}, which is not installed",))
    except UserError as error:
        raise UserError(f"{stage.name}: {error}") from None
    assert isinstance(cost, Cost)
    return cost
