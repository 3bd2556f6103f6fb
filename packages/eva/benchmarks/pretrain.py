"""The pre-training step against a plain timm loop, the teacher's share, and what targets from the cache gain and cost.

    python packages/eva/benchmarks/pretrain.py [--quick] [--out packages/eva/benchmarks/results/pretrain]

What is compared runs in turn, round after round; ratios are medians over the rounds. On a CPU time is that of this
process (one thread computes, one reads), so other work on the machine does not count; on a GPU it is the wall's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from plain_loop import PlainLoop

from vfm.artifacts import Artifact, ClipCheckpoint, ImageDataset, SampleCache
from vfm.data.loader import Batch, TrainingData
from vfm.data.sample_cache import FOLDER, CachedTensors
from vfm.data.shapes.stages import ShapesPool
from vfm.data.source import open_dataset
from vfm.events import Event
from vfm.models import build_clip, save_clip
from vfm.stage import Context
from vfm.train import fit
from vfm_eva import EvaPretrain, EvaTargets, MakeViews, MaskedData, Masks, Pca, StoredTargets
from vfm_eva.images import crop_transform

STUDENT, TEACHER, GRID = "eva02_pico_patch8_64", "ViT-Mini-14-112", (8, 8)
CUDA = torch.cuda.is_available()
STORED = {
    "fp32": {"dtype": "fp32"},
    "fp16": {"dtype": "fp16"},
    "int8": {"dtype": "int8"},
    "int8, half the components": {"dtype": "int8", "components": 0.5},
    "int8, a quarter": {"dtype": "int8", "components": 0.25},
}


def clock() -> float:
    """Seconds: the wall's on a GPU, once it is done; those of this process on a CPU."""
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def context(folder: Path, **inputs: Artifact) -> Context:
    (folder / "artifact").mkdir(parents=True)
    (folder / "work").mkdir()
    return Context("eva", folder / "artifact", folder / "work", {name: made.path for name, made in inputs.items()})


def pretrain(steps: int, batch: int, **changes: Any) -> EvaPretrain:
    settings = {"name": "eva", "data": "pool", "teacher": "teacher", "model": STUDENT, "mask": "block", "lr": 1e-3}
    runtime = {"threads": 1}
    return EvaPretrain.model_validate(
        {**settings, "min_lr": 1e-3, "steps": steps, "global_batch_size": batch, "runtime": runtime, **changes}
    )


class Repeated:
    """The same batches again and again, with the time at which each was asked for."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.times = batches, list[float]()

    def steps(self, start_step: int, num_steps: int, **sizes: int) -> Iterator[list[Batch]]:
        for batch in itertools.islice(itertools.cycle(self.batches), num_steps - start_step):
            self.times.append(clock())
            yield [batch]


def seconds(times: list[float]) -> float:
    """The median step, the first two left out."""
    return statistics.median(after - before for before, after in itertools.pairwise(times[2:]))


class Bench:
    """A pool, a teacher, and what is measured of them."""

    def __init__(self, root: Path, pool: ImageDataset, teacher: ClipCheckpoint, *, quick: bool) -> None:
        self.root, self.pool, self.teacher = root, pool, teacher
        self.steps, self.rounds, self.batch = (6, 2, 8) if quick else (10, 5, 32)
        self.learning_steps = 12 if quick else 60
        self.numbers = itertools.count()

    def folder(self) -> Path:
        return self.root / str(next(self.numbers))

    def task(self, config: EvaPretrain) -> Any:
        return config._from_teacher(context(self.folder(), pool=self.pool, teacher=self.teacher))[0]

    def batches(self, task: Any, count: int) -> list[Batch]:
        make = MakeViews(*(crop_transform(pretrain(1, 1), model.preprocess) for model in (task, task.teacher)))
        data = TrainingData(open_dataset(self.pool), make, global_batch_size=self.batch)
        masks = Masks("block", task.grid, task.num_masked)
        steps = MaskedData(data, masks).steps(0, count, micro_batch_size=self.batch)
        return [{**batch, "bad": []} for (batch,) in steps]

    def step(self) -> dict[str, float]:
        """Milliseconds of a step, ours and the plain loop's, on the same batches from the same weights."""
        config = pretrain(self.steps, self.batch, log_every=self.steps)
        fresh = self.task(config)
        device = "cuda" if CUDA else "cpu"
        batches = [_moved(batch, device) for batch in self.batches(fresh, 4)]
        found: dict[str, list[float]] = {"vfm": [], "plain": [], "teacher": []}
        apart = []
        for number in range(self.rounds):
            order = ["vfm", "plain"] if number % 2 else ["plain", "vfm"]
            losses = {}
            for name in order:
                task, data = copy.deepcopy(fresh), Repeated(batches)
                if name == "vfm":
                    ctx = context(self.folder())
                    fit(task, data, config, ctx, config.runtime)
                    (line,) = (ctx.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                    losses[name] = json.loads(line)["train/loss"]
                else:
                    losses[name] = statistics.mean(self._plain(task.to(device), data))
                found[name].append(seconds(data.times))
            apart.append(abs(losses["vfm"] - losses["plain"]))
            found["teacher"].append(self._teacher(fresh.to(device), batches))
        medians = {name: 1e3 * statistics.median(values) for name, values in found.items()}
        ratios = [ours / plain for ours, plain in zip(found["vfm"], found["plain"], strict=True)]
        return {
            "vfm, ms": medians["vfm"],
            "plain timm loop, ms": medians["plain"],
            "vfm / plain": statistics.median(ratios),
            "teacher's share": medians["teacher"] / medians["vfm"],
            "losses apart, at most": max(apart),
        }

    def _plain(self, task: Any, data: Repeated) -> Iterator[float]:
        visual = task.teacher.module.visual
        visual.output_tokens = True
        pixels = (task.preprocess.pixels, task.teacher.preprocess.pixels)
        loop = PlainLoop(task.student.train(), task.head, task.mask_token, visual, pixels)
        return loop.run(batch for (batch,) in data.steps(0, self.steps))

    def _teacher(self, task: Any, batches: list[Batch]) -> float:
        times = []
        for batch in batches:
            start = clock()
            task.teacher.of(batch, task.grid)
            times.append(clock() - start)
        return statistics.median(times)

    def cached(self) -> dict[str, dict[str, float]]:
        """Whole trainings, reading included: with the teacher, and from each kind of cache."""
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
                files = list((cache.path / FOLDER).glob("*.npy"))
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
        """Milliseconds a step and the share of time spent waiting for data, in a training as users run it."""
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
        """The loss on exact targets, over all images, of a student that was trained from `cache`."""
        config = pretrain(self.learning_steps, self.batch, teacher=None, targets="targets", warmup_steps=10, lr=3e-3)
        ctx = context(self.folder(), pool=self.pool, targets=cache)
        task, make = config._from_cache(ctx, self.pool)
        masks = Masks("block", task.grid, task.num_masked)
        fit(
            task, MaskedData(TrainingData.of(config, open_dataset(self.pool), make), masks), config, ctx, config.runtime
        )
        task.eval()
        task.teacher = StoredTargets(exact.cache.shape[-1])
        device = task.mask_token.device
        task.to(device)
        judged = TrainingData(open_dataset(self.pool), _with(exact, make), seed=1, global_batch_size=self.batch)
        losses = []
        with torch.no_grad():
            count = len(exact) // self.batch
            for (batch,) in MaskedData(judged, masks).steps(0, count, micro_batch_size=self.batch):
                losses.append(task(_moved(batch, str(device)))[0].item())
        return statistics.mean(losses)


def _with(exact: CachedTensors, make: Any) -> Any:
    return type(make)(make.make, exact, make.global_batch_size)


def _cosine(cache: SampleCache, exact: CachedTensors) -> float:
    pca, stored = Pca.load(cache.path) if cache.basis else None, CachedTensors(cache)
    teacher = StoredTargets(exact.cache.shape[-1], pca)
    found = [
        torch.cosine_similarity(
            teacher.of({"targets": torch.from_numpy(stored[index, 0]).float()}, GRID),
            torch.from_numpy(exact[index, 0]),
            dim=-1,
        ).mean()
        for index in range(0, len(exact), 4)
    ]
    return torch.stack(found).mean().item()


def _moved(batch: Batch, device: str) -> Batch:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def tables(result: dict[str, Any]) -> str:
    """As markdown."""
    step, cached = result["step"], result["cached"]
    columns = list(cached["fp32"])
    lines = [f"{result['machine']}; {result['models']}", "", "| a step | |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in step.items()]
    lines += ["", "| targets | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in cached.items():
        cells = [_cell(column, row.get(column)) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Most memory of the process: {result['gib']:.2f} GiB."])


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    digits = {"ms a step": 1, "data wait, %": 1, "against live": 2, "bytes an image": 0, "cosine to exact": 5}
    return f"{value:,.{digits.get(column, 4)}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; the numbers mean nothing")
    parser.add_argument("--data", type=Path, help="an image data set of a store; default: pictures of shapes")
    parser.add_argument("--teacher", type=Path, help="a ClipCheckpoint of a store with 8 x 8 patches; default: random")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        pool = ImageDataset.load(options.data) if options.data else _pool(root / "pool", 64 if options.quick else 256)
        name = TEACHER if not options.quick else "ViT-Pico-8-64"
        teacher = (
            ClipCheckpoint.load(options.teacher) if options.teacher else save_clip(build_clip(name, seed=0), root / "t")
        )
        bench = Bench(root / "runs", pool, teacher, quick=options.quick)
        result = {
            "machine": torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU, one thread",
            "models": f"student {STUDENT}, teacher {teacher.model}, batch {bench.batch}, torch {torch.__version__}",
            "step": bench.step(),
            "cached": bench.cached(),
        }
    result["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(tables(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(tables(result) + "\n", encoding="utf-8")


def _pool(folder: Path, num_samples: int) -> ImageDataset:
    stage = ShapesPool.model_validate({"name": "pool", "num_samples": num_samples, "world": {"image_size": 64}})
    return stage.run(context(folder))


if __name__ == "__main__":
    main()
