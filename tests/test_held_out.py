"""The shipped recipes score models on samples of the synthetic world that have trained and chosen nothing."""

from __future__ import annotations

from itertools import product

import pytest

from vfm.flow.recipe.recipe import load_recipe
from vfm.flow.recipe.shipped import shipped_files
from vfm.interfaces import Stage, Training, load_plugins, refs, stage_types

COUNTED = ("choices", "frequency_of")  # these fields of a training or an evaluation fit nothing to what they read


def stream(stage: Stage) -> tuple[object, ...] | None:
    """What decides the samples: of two stages that are equal in it, one draws the first samples of the other."""
    if not stage.kind.startswith("shapes."):
        return None
    return (stage.kind, *(getattr(stage, name, None) for name in ("seed", "label", "split")))


def uses(stage: Stage) -> list[tuple[str, bool]]:
    """The names of what a stage reads, and whether it scores models on them; else it trains or chooses by them."""
    found = []
    for key, name in refs(stage):
        field, *rest = key.split(".")
        if {field, *rest}.intersection(COUNTED):
            continue
        chooses = isinstance(stage, Training) and bool(stage.evaluation.keep_best)
        scores = not chooses if field == "evaluation" else stage.kind.startswith("eval.")
        found.append((str(name), scores and "train" not in (field, *rest)))
    return found


# eva_claim_rates is for choosing. The known pairs of diva_law begin after the last pair that is scored.
@pytest.mark.parametrize("name", sorted(shipped_files("recipes").keys() - {"eva_claim_rates", "diva_law"}))
def test_no_sample_that_is_scored_was_trained_on(name: str) -> None:
    recipe = load_recipe(name, stage_types(load_plugins()), absent_path="data")
    stages = {stage.name: stage for stage in recipe.stages}
    read: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for stage in recipe.stages:
        for dataset, is_scored in uses(stage):
            read[is_scored][dataset] = stage.name
    shared = [
        f"{read[True][test]} scores {test}, {read[False][train]} trains or chooses by {train}"
        for test, train in product(*(sorted(read[scored] & stages.keys()) for scored in (True, False)))
        if stream(stages[test]) and stream(stages[test]) == stream(stages[train])
    ]
    assert not shared
