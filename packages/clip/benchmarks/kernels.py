"""Compare `kernels: auto` with `reference` on a CPU: python packages/clip/benchmarks/kernels.py

Whole `clip.train` and `eva.pretrain` stages run from the same seed on the same images of shapes, round after round:
`reference`, `auto`, and `reference` again, to measure the noise of the ratio. Seconds are process times. The result
also reports whether weights and losses are equal bit for bit. It needs vfm-eva, and takes three minutes on a core,
seconds with `--quick`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench import context, in_turn, machine, options, ratio, write

from vfm.data.synthetic.stages import ShapesPool
from vfm.models import build_clip, save_clip
from vfm.plugin import Artifact, Training
from vfm_clip import ClipTrain
from vfm_eva import EvaPretrain

CONTESTANTS = {"reference": "reference", "auto": "auto", "reference again": "reference"}


class Stages:
    """Runs the two stages in separate folders, and keeps hashes of their results."""

    def __init__(self, root: Path, steps: int) -> None:
        self.folders = (root / str(number) for number in itertools.count())
        self.steps, self.made = steps, dict[str, set[str]]()
        shapes = {"name": "pool", "num_samples": 256, "world": {"image_size": 32}}
        pool: Artifact = ShapesPool.model_validate(shapes).run(context(next(self.folders)))
        self.inputs = {"pool": pool, "teacher": save_clip(build_clip("ViT-Nano-8-32", seed=0), next(self.folders))}

    def train(self, kind: type[Training], choice: str, **settings: Any) -> None:
        """Run a training stage, and store the hash of its weights and curves by the stage's kind."""
        plan = {"name": "trained", "data": "pool", "steps": self.steps, "global_batch_size": 32, "log_every": 1}
        runtime = {"device": "cpu", "threads": 1, "kernels": choice}
        config = kind.model_validate({**plan, **settings, "runtime": runtime})
        made = config.run(context(next(self.folders), **self.inputs))
        found = hashlib.sha256(next(made.path.glob("*model.safetensors")).read_bytes())
        for line in (made.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            found.update(json.dumps({k: v for k, v in json.loads(line).items() if k.startswith("train/")}).encode())
        self.made.setdefault(kind.kind_name(), set()).add(found.hexdigest())


def main() -> None:
    chosen = options(__doc__).parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "stages": {}}
    with TemporaryDirectory() as folder:
        stages = Stages(Path(folder), steps=2 if chosen.quick else 20)
        kinds: dict[type[Training], dict[str, Any]] = {
            ClipTrain: {"model": "ViT-Nano-8-32"},
            EvaPretrain: {"teacher": "teacher", "model": "eva02_nano_patch8_32"},
        }
        for kind, settings in kinds.items():
            runs: dict[str, Callable[[], None]] = {
                name: partial(stages.train, kind, choice, **settings) for name, choice in CONTESTANTS.items()
            }
            seconds = {name: taken["cpu"] for name, taken in in_turn(runs, 2 if chosen.quick else 12).items()}
            result["stages"][kind.kind_name()] = {
                "seconds": statistics.median(seconds["reference"]),
                "auto / reference": ratio(seconds["auto"], seconds["reference"]),
                "reference / reference": ratio(seconds["reference again"], seconds["reference"]),
                "different results": len(stages.made[kind.kind_name()]),
                "rounds": seconds,
            }
    columns = ["seconds", "auto / reference", "reference / reference", "different results"]
    lines = [result["machine"], "", "| stage | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in result["stages"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.4g}" for column in columns) + " |")
    write(chosen.out, "kernels", result, "\n".join(lines))


if __name__ == "__main__":
    main()
