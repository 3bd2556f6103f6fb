"""Compare training with open_clip_train's loop: python packages/clip/benchmarks/training.py

Both use the same weights, optimizer, schedule, batch size and tar of JPEGs, each with its reader, in one process. Their
rounds alternate. A step is timed from one request for a batch to the next: it includes reading, but no checkpoints,
which open_clip writes elsewhere. It takes three minutes, with `--quick` seconds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench import context, machine, made_pairs, options, pool_of, ratio, write
from loader import peer_data
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch

from vfm.data import ImageTransform, TrainingData, open_dataset
from vfm.models import build_clip
from vfm.train import fit
from vfm_clip import ClipTrain
from vfm_clip.data import MakePair
from vfm_clip.task import ClipTask

CUDA = torch.cuda.is_available()
WARM_UP = 2  # steps of a round that are not counted


@dataclass
class Clocked:
    """Yields the batches of a loader, and records the seconds between two requests."""

    batches: Any
    num_batches: int = 0
    num_samples: int = 0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def steps(self, *args: int, **sizes: int) -> Iterator[Any]:
        """Yield the steps for vfm's loop."""
        return self._clocked(self.batches.steps(*args, **sizes))

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of a round for open_clip's loop."""
        return self._clocked(itertools.islice(self.batches, self.num_batches))

    def _clocked(self, batches: Iterable[Any]) -> Iterator[Any]:
        before = (0.0, 0.0)
        for place, batch in enumerate(batches):
            cpu, wall = time.process_time(), time.perf_counter()
            if place >= WARM_UP:
                self.cpu.append(cpu - before[0])
                self.wall.append(wall - before[1])
            before = cpu, wall
            yield batch
            if CUDA:
                torch.cuda.synchronize()


@dataclass
class PeerData:
    """The data interface of open_clip_train."""

    dataloader: Clocked

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all rounds are equal."""


class Peer:
    """open_clip_train's loop over a copy of the model."""

    def __init__(self, model: torch.nn.Module, data: Clocked, plan: ClipTrain) -> None:
        model.output_dict = True  # as open_clip_train's main does
        self.model, self.data = model, {"train": PeerData(data)}
        exempt = [p for n, p in model.named_parameters() if p.ndim < 2 or "bn" in n or "ln" in n or "logit_scale" in n]
        rest = [p for p in model.parameters() if all(p is not one for one in exempt)]
        groups = [
            {"params": exempt, "weight_decay": 0.0},
            {"params": rest, "weight_decay": plan.optimizer.weight_decay},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98), eps=1e-6)
        self.schedule = cosine_lr(self.optimizer, plan.lr, 1, 10_000)
        self.args = argparse.Namespace(
            device="cuda" if CUDA else "cpu",
            precision=plan.precision,
            batch_size=plan.global_batch_size,
            accum_freq=1,
            distill=False,
            skip_scheduler=False,
            horovod=False,
            grad_clip_norm=None,
            log_every_n_steps=100,
            world_size=1,
            rank=0,
            wandb=False,
        )

    def round(self) -> None:
        """Train for one round."""
        train_one_epoch(self.model, self.data, ClipLoss(), 0, self.optimizer, None, self.schedule, None, self.args)


def measure(folder: Path, name: str, batch_size: int, precision: str, *, quick: bool) -> dict[str, float]:
    """Measure milliseconds per step, and samples per second."""
    steps, rounds, num_samples = (4, 1, 64) if quick else (8, 5, 1024)
    clip = build_clip(name, seed=0, device="cuda" if CUDA else "cpu")
    size = clip.preprocess.image_size
    tar = made_pairs(folder / "tars", num_samples, 128)
    plan = ClipTrain.model_validate(
        {
            "name": "clip",
            "data": "pool",
            "model": name,
            "steps": steps,
            "global_batch_size": batch_size,
            "schedule": {"warmup_steps": 1},
            "precision": precision,
            "log_every": 100,
            "runtime": {"threads": torch.get_num_threads()},
        }
    )
    theirs = Clocked(peer_data(tar, size, batch_size, name), steps, steps * batch_size)
    peer = Peer(deepcopy(clip.module), theirs, plan)
    make = MakePair(ImageTransform(size, scale=(0.9, 1.0)), clip.tokenizer, {"en": 1.0})
    source = open_dataset(pool_of(tar, folder / "pool"))
    ours = Clocked(TrainingData(source, make, global_batch_size=batch_size))
    task = ClipTask(clip)
    for number in range(rounds):
        fit(task, ours, plan, context(folder / f"round{number}"))
        peer.round()
    clock = "wall" if CUDA else "cpu"
    seconds = [getattr(one, clock) for one in (ours, theirs)]
    ms = [1e3 * statistics.median(one) for one in seconds]
    return {
        "batch": batch_size,
        "vfm, ms a step": ms[0],
        "open_clip, ms a step": ms[1],
        "vfm, samples a second": 1e3 * batch_size / ms[0],
        "open_clip / vfm": ratio(seconds[1], seconds[0]),
        "open_clip / vfm, wall": ratio(theirs.wall, ours.wall),
    }


def main() -> None:
    """Run the command."""
    parser = options(__doc__)
    parser.add_argument("--model", nargs="+", default=["ViT-Mini-14-112", "ViT-Nano-8-32"], help="open_clip names")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="amp_bf16" if CUDA else "fp32")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        found = {
            name: measure(
                Path(folder) / name, name, 8 if chosen.quick else chosen.batch, chosen.precision, quick=chosen.quick
            )
            for name in chosen.model
        }
    columns = list(next(iter(found.values())))
    lines = ["| model | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.4g}" for c in columns) + " |" for name, row in found.items()]
    write(chosen.out, "training", {"machine": machine(), **found}, "\n".join([*lines, "", machine()]))


if __name__ == "__main__":
    main()
