"""Compare a training step of `eva.video` with a bare loop over timm's blocks, on the same batches and weights.

    python packages/eva/benchmarks/video_step.py [--quick] [--out FILE.json]

The bare loop only joins the tokens of all frames, repeats the rotary table and calls timm's blocks, head and AdamW.
Both take turns on one core. The result is the median ratio of neighbouring turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vfm.data import Batch
from vfm.models import build_vision
from vfm.plugin import Context
from vfm.train import fit
from vfm_eva.video.clips import VideoClips
from vfm_eva.video.model import VideoTransformer
from vfm_eva.video.stages import EvaVideo
from vfm_eva.video.task import VideoTask

FRAMES, CLASSES, WARM_UP = 8, 10, 2


class BareLoop:
    """The same training steps, written with timm alone."""

    def __init__(self, model: VideoTransformer, preprocess: Any, lr: float) -> None:
        self.visual, self.preprocess = copy.deepcopy(model.visual), preprocess
        visual = self.visual
        self.table = torch.nn.Parameter(visual.pos_embed[:, 1:].detach().repeat(FRAMES, 1, 1))
        exempt = visual.no_weight_decay()
        named = [(name, one) for name, one in visual.named_parameters() if one.requires_grad]
        decayed = [one for name, one in named if one.ndim > 1 and name not in exempt]
        others = [one for name, one in named if one.ndim == 1 or name in exempt]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": [*others, self.table], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)
        self.rope = visual.rope.get_embed().repeat(FRAMES, 1)

    def step(self, inputs: VideoClips) -> float:
        visual, clips = self.visual, inputs.clips[:, 0]
        pixels = self.preprocess.pixels(clips.flatten(0, 1))
        patches = visual.patch_embed(pixels).unflatten(0, (len(clips), FRAMES)) + self.table
        token = (visual.cls_token + visual.pos_embed[:, :1]).expand(len(clips), -1, -1)
        x: Tensor = torch.cat([token, patches.flatten(1, 2)], dim=1)
        for block in visual.blocks:
            x = block(x, rope=self.rope)
        loss = F.cross_entropy(visual.forward_head(visual.norm(x)), inputs.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class InTurn:
    """Yields batches to vfm's loop. After each of its steps, the bare loop takes the same batch."""

    def __init__(self, batches: list[Batch[VideoClips]], bare: BareLoop) -> None:
        self.batches, self.bare = batches, bare
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.losses: list[float] = []

    def steps(self, start_step: int, num_steps: int, **sizes: int) -> Iterator[list[Batch[VideoClips]]]:
        for number in range(num_steps - start_step):
            batch, start = self.batches[number % len(self.batches)], time.process_time()
            yield [batch]
            self.ours.append(time.process_time() - start)
            start = time.process_time()
            self.losses.append(self.bare.step(batch.inputs))
            self.theirs.append(time.process_time() - start)


def measure(model: str, batch_size: int, steps: int) -> dict[str, float]:
    """Measure the milliseconds of a step of both loops, and the difference of their losses."""
    config = EvaVideo.model_validate(
        {
            "kind": "eva.video", "name": "video", "encoder": "encoder", "data": "data", "clip": {"num_frames": FRAMES},
            "steps": steps, "global_batch_size": batch_size, "log_every": steps - 1, "lr": 1e-3,
            "trained": {"layer_decay": 1.0},
            "optimizer": {"type": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "grad_clip_norm": None},
            "schedule": {"type": "constant"}, "runtime": {"device": "cpu", "threads": 1},
        }
    )  # fmt: skip
    visual = build_vision(model, num_classes=CLASSES, global_pool="avg", seed=0)
    size = visual.patch_embed.img_size[0]  # type: ignore[union-attr,index]
    names = [str(number) for number in range(CLASSES)]
    task = VideoTask(VideoTransformer(visual, FRAMES, config.video, CLASSES), config.clip, names)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, 1, FRAMES, 3, size, size)
    batches = [
        Batch(
            VideoClips(
                torch.randint(256, shape, dtype=torch.uint8, generator=generator),
                torch.randint(CLASSES, (batch_size,), generator=generator),
            ),
            [str(number) for number in range(batch_size)],
        )
        for _ in range(4)
    ]
    data = InTurn(batches, BareLoop(task.model, task.preprocess, config.lr))
    with TemporaryDirectory() as folder:
        ctx = Context("video", Path(folder), Path(folder) / "work", {})
        ctx.work.mkdir()
        fit(task, data, config, ctx)
        line = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[0])
    ours, theirs = data.ours[WARM_UP:], data.theirs[WARM_UP:]
    return {
        "vfm, ms": 1e3 * statistics.median(ours),
        "bare timm loop, ms": 1e3 * statistics.median(theirs),
        "vfm / bare, median": statistics.median(own / other for own, other in zip(ours, theirs, strict=True)),
        "mean losses apart": abs(line["train/loss"] - statistics.mean(data.losses[: steps - 1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of a tiny model")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, batch, steps = ("eva02_pico_patch8_32", 4, 6) if given.quick else ("eva02_nano_patch8_64", 4, 24)
    row = {"model": model, **measure(model, batch, steps)}
    print(", ".join(f"{key}: {value if isinstance(value, str) else f'{value:.4g}'}" for key, value in row.items()))
    if given.out:
        given.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
