"""Compare whole training runs from stored targets with runs that use the teacher: speed, bytes, loss of accuracy."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from bench import GRID, Bench, clock, context, pretrain

from vfm.data import CACHE_FOLDER, CachedTensors, TrainingData, open_dataset
from vfm.plugin import Artifact, Event, SampleCache
from vfm.train import fit
from vfm_eva import BlockMask, EvaTargets
from vfm_eva.pretrain.masks import MaskedData, Masks
from vfm_eva.pretrain.pretrain import task_from_cache
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.pca import Pca
from vfm_eva.targets.stored import StoredTargets

SCHEDULE = {"warmup_steps": 10, "min_lr": 1e-3}
STORED = {
    "fp32": {"dtype": "fp32"},
    "fp16": {"dtype": "fp16"},
    "int8": {"dtype": "int8"},
    "int8, half the components": {"dtype": "int8", "components": 0.5},
    "int8, a quarter": {"dtype": "int8", "components": 0.25},
}


class Cached(Bench):
    """Measures training runs with the teacher and from each kind of cache."""

    def measure(self) -> dict[str, dict[str, float]]:
        """Measure whole training runs, including reading, with the teacher and from each kind of cache."""
        caches = {name: self._cache(name) for name in STORED}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ("live", *caches)}
        for _ in range(max(2, self.rounds // 2)):
            found["live"].append(self._training(teacher=self.teacher))
            for name, cache in caches.items():
                found[name].append(self._training(targets=cache))
        rows = {
            name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
        }
        exact = CachedTensors(caches["fp32"])
        reached = self._reached(caches["fp32"], exact)
        for name, row in rows.items():
            row["against live"] = rows["live"]["ms a step"] / row["ms a step"]
            if name != "live":
                cache = caches[name]
                files = list((cache.path / CACHE_FOLDER).glob("*.npy"))
                row["bytes an image"] = sum(file.stat().st_size for file in files) / cache.num_samples
                row["cosine to exact"] = _cosine(cache, exact)
                row["loss on exact targets"] = reached if name == "fp32" else self._reached(cache, exact)
        return rows

    def _cache(self, name: str) -> SampleCache:
        width = self.task(pretrain(1, 1)).teacher.width
        settings = {**STORED[name]}
        if "components" in settings:
            settings["components"] = int(settings["components"] * width)
        stage = EvaTargets.model_validate(
            {
                "name": "targets",
                "data": "pool",
                "teacher": "teacher",
                "grid": GRID,
                "runtime": {"threads": 1},
                **settings,
            }
        )
        return stage.run(context(self.folder(), pool=self.pool, teacher=self.teacher))

    def _training(self, steps: int | None = None, **inputs: Artifact) -> dict[str, float]:
        """Measure the milliseconds per step of a training run, and the fraction of time spent waiting for data."""
        events: list[Event] = []
        steps = steps or self.steps
        changes: dict[str, Any] = {"log_every": max(1, steps // 3)}
        if "targets" in inputs:
            changes |= {"teacher": None, "targets": "targets"}
        ctx = context(self.folder(), pool=self.pool, **inputs)
        times: list[float] = []

        def note(event: Event) -> None:
            if event.type == "metrics":
                events.append(event)
                times.append(clock())

        ctx.send = note
        pretrain(steps, self.batch, **changes).run(ctx)
        logged = [event.data for event in events]
        between = (times[-1] - times[0]) / (logged[-1]["step"] - logged[0]["step"])
        return {"ms a step": 1e3 * between, "data wait, %": logged[-1]["values"]["train/data_wait_pct"]}

    def _reached(self, cache: SampleCache, exact: CachedTensors) -> float:
        """Compute the loss on exact targets, over all images, of a student trained from `cache`."""
        config = pretrain(self.learning_steps, self.batch, teacher=None, targets="targets", schedule=SCHEDULE, lr=3e-3)
        ctx = context(self.folder(), pool=self.pool, targets=cache)
        task, make = task_from_cache(config, ctx, self.pool)
        masks = Masks(BlockMask(), task.grid, task.num_masked)
        fit(task, MaskedData(TrainingData.of(config, open_dataset(self.pool), make), masks), config, ctx)
        task.eval()
        task.objectives[0].teacher = StoredTargets(exact.cache.shape[-1])
        device = task.mask_token.device
        task.to(device)
        evaluated = TrainingData(open_dataset(self.pool), _with(exact, make), seed=1, global_batch_size=self.batch)
        losses = []
        with torch.no_grad():
            count = len(exact) // self.batch
            for (batch,) in MaskedData(evaluated, masks).steps(0, count, micro_batch_size=self.batch):
                losses.append(task(batch.to(device).inputs)[0].item())
        return statistics.mean(losses)


def _with(exact: CachedTensors, make: Any) -> Any:
    return type(make)(make.make, exact, make.global_batch_size)


def _stored(stored: CachedTensors, index: int) -> EvaInputs:
    targets = torch.from_numpy(stored[index, 0]).float()
    return EvaInputs(torch.empty(0), torch.empty(0), targets=targets)


def _cosine(cache: SampleCache, exact: CachedTensors) -> float:
    pca, stored = Pca.load(cache.path) if cache.basis else None, CachedTensors(cache)
    teacher = StoredTargets(exact.cache.shape[-1], pca)
    found = [
        torch.cosine_similarity(
            teacher.targets(_stored(stored, index), GRID),
            torch.from_numpy(exact[index, 0]),
            dim=-1,
        ).mean()
        for index in range(0, len(exact), 4)
    ]
    return torch.stack(found).mean().item()
