"""Estimates of the cost of every stage before it runs, even if the data of a recipe are not on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vfm.base import UserError, load_function
from vfm.flow.plan.plan import make_plan
from vfm.flow.plan.store import Store
from vfm.flow.recipe.recipe import Recipe
from vfm.interfaces import FACTS_FILE, Cost, Preflight, Stage, refs

ABSENT = "(absent)"  # placeholder for a path that the user of a recipe must set


def known_artifacts(recipe: Recipe, store: Store) -> tuple[dict[str, Path], str]:
    """Find the folders of existing inputs, and the reason why artifacts of earlier runs are missing, if they are."""
    try:
        steps = make_plan(recipe, store)
        folders = {step.stage.name: step.slot.artifact for step in steps if step.status == "cached"}
        missing = ""
    except UserError as error:
        folders, missing = {}, str(error).splitlines()[0]
    names = {stage.name for stage in recipe.stages}  # stage names take precedence over folders, as in the plan
    saved: dict[str, Path] = {}
    for stage in recipe.stages:
        for _, ref in refs(stage):
            if ref not in names and (Path(ref) / FACTS_FILE).is_file():
                saved[str(ref)] = Path(ref)
    return {**saved, **folders}, missing


def estimate_costs(recipe: Recipe, artifacts: Mapping[str, Path]) -> dict[str, Cost]:
    """Estimate the cost of each stage that has one, by name.

    Raises:
        UserError: If a stage's settings do not fit its models.
    """
    ctx = Preflight({stage.name: stage for stage in recipe.stages}, artifacts)
    return {stage.name: _cost(stage, ctx) for stage in recipe.stages if stage.costs}


def _cost(stage: Stage, ctx: Preflight) -> Cost:
    try:
        cost: Cost = load_function(stage.costs)(stage, ctx)
    except ImportError as error:
        return Cost(unknown=(f"what needs {error.name or error}, which is not installed",))
    except UserError as error:
        raise UserError(f"{stage.name}: {error}") from None
    return cost
