"""Evaluations in several processes of one group, for the tests that compare them with one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import dense_toy  # noqa: F401  its stage declares the predictor
import video_predictor  # noqa: F401  likewise
from train_toy import fork, run_group
from vfm.base import UserError
from vfm.interfaces import Context, LeftToFirst, Runtime, load_plugins, stage_types
from vfm.train import distributed


def evaluate(root: Path, folder: str, stages: list[dict[str, Any]], inputs: dict[str, str]) -> None:
    """Run evaluations in this process of those of the group, each in a folder of its name.

    The first process writes the bad samples that it has counted; the error of each process goes into a file of its own.
    """
    known, rank = stage_types(load_plugins()), int(os.environ.get("RANK", "0"))
    with distributed(Runtime(device="cpu")):
        for stage in stages:
            config = known[stage["kind"]].model_validate({**stage, "runtime": {"device": "cpu"}})
            out = root / folder / config.name if not rank else root / f"{folder}-scratch-{rank}" / config.name
            out.mkdir(parents=True)
            ctx = Context(config.name, out, root / folder / "work", {name: Path(path) for name, path in inputs.items()})
            try:
                config.run(ctx)
                assert not rank, "the others leave the rest to the first process"
            except LeftToFirst:
                assert rank
            except UserError as error:
                (root / folder / f"{config.name}-{rank}.txt").write_text(str(error))
            if not rank:
                (out / "bad.json").write_text(json.dumps(dict(ctx.bad)))


def evaluate_in(number: int, root: Path, folder: str, stages: list[dict[str, Any]], inputs: dict[str, str]) -> None:
    """Run the evaluations in `number` processes, forked from one that has imported torch."""
    run_group(__file__, json.dumps([str(root), folder, stages, inputs]), number=number)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, folder, stages, inputs = json.loads(sys.argv[1])
    fork(int(os.environ["WORLD_SIZE"]), lambda: evaluate(Path(root), folder, stages, inputs))
