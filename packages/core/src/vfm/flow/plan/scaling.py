"""The cost of a training step per sample, from which steps on other numbers of devices are simulated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vfm.flow.plan.estimate import estimate_cost
from vfm.flow.recipe.recipe import Recipe
from vfm.interfaces import Cost, Preflight, Training
from vfm.train.cost.cluster import Load

FEW, MORE = 8, 16  # samples of the steps that are compared
FP32 = 4  # bytes


def step_loads(recipe: Recipe, artifacts: Mapping[str, Path]) -> dict[str, Load]:
    """Estimate the cost of a sample for each training stage whose costs are known, by name.

    Raises:
        UserError: If a stage's settings do not fit its models.
    """
    ctx = recipe.preflight(artifacts)
    loads = {}
    for stage in recipe.stages:
        if isinstance(stage, Training) and stage.costs:
            load = _load(stage, ctx)
            if load:
                loads[stage.name] = load
    return loads


def _load(stage: Training, ctx: Preflight) -> Load | None:
    few = _cost(stage, ctx, FEW, FEW)
    more = _cost(stage, ctx, MORE, MORE)
    in_two = _cost(stage, ctx, MORE, FEW)
    if not (few.memory and more.memory and few.flops and more.flops and in_two.flops):
        return None
    trained_bytes = FP32 * few.trained
    memory = few.memory
    return Load(
        trained=few.trained,
        flops=(more.flops - few.flops) / (MORE - FEW),
        replayed=in_two.flops / more.flops,
        fixed_bytes=trained_bytes + memory.gradients + memory.optimizer + memory.average,
        frozen_bytes=max(0, memory.weights - trained_bytes),
        activation_bytes=(more.memory.activations - memory.activations) / (MORE - FEW),
    )


def _cost(stage: Training, ctx: Preflight, samples: int, micro: int) -> Cost:
    """Estimate a step of some samples in one process."""
    runtime = stage.runtime.model_copy(update={"processes": 1, "parallel": "ddp", "shard_degree": None})
    changes = {"global_batch_size": samples, "micro_batch_size": micro, "runtime": runtime}
    return estimate_cost(stage.model_copy(update={**changes, "steps": 1, "samples_seen": None, "epochs": None}), ctx)
