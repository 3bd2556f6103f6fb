"""Questions about made images and tiny models for the tests of multimodal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diva_toy
from vfm.data.synthetic.stages import ShapesQuestions
from vfm.data.synthetic.world import World
from vfm.plugin import Artifact, ClipCheckpoint, QuestionDataset
from vfm_diva.mllm.stages import EvalMllm, MllmCheckpoint, MllmTrain

WORLD = World(image_size=16, attributes=(), variety=0.0, colours=("red", "green", "blue", "yellow"))
LLAMA = {"type": "llama", "layers": 1, "width": 32, "heads": 2}
PROMPT = "<image> {question}"


def make_questions(folder: Path, pairs: int = 24, split: str = "train") -> QuestionDataset:
    """Draw questions about colours."""
    stage = ShapesQuestions(name="asked", world=WORLD, pairs_per_family=pairs, split=split)
    made: QuestionDataset = diva_toy.run(stage, folder)
    return made


def train_config(**changes: Any) -> MllmTrain:
    settings: dict[str, Any] = {"steps": 4, "global_batch_size": 8, "lr": 3e-3, "log_every": 2}
    settings |= {"schedule": {"warmup_steps": 0}, "optimizer": {"weight_decay": 0.0}, "runtime": {"device": "cpu"}}
    if "init" not in changes:
        settings |= {"vision": "clip", "language_model": LLAMA, "prompt": PROMPT, "layer": -1}
    return MllmTrain(name="mllm", data="asked", **{**settings, **changes})


def train(folder: Path, clip: ClipCheckpoint, asked: QuestionDataset, **changes: Any) -> MllmCheckpoint:
    made: MllmCheckpoint = diva_toy.run(train_config(**changes), folder, clip=clip, asked=asked)
    return made


def evaluate(folder: Path, asked: QuestionDataset, models: dict[str, MllmCheckpoint], **changes: Any) -> Any:
    """Return the report of an evaluation."""
    config = EvalMllm(name="judged", models=list(models), data="asked", runtime={"device": "cpu"}, **changes)
    inputs: dict[str, Artifact] = {"asked": asked, **models}
    return diva_toy.run(config, folder, **inputs)


def values(report: Any, model: str) -> dict[str, float]:
    return {metric.name: metric.value for metric in report.metrics if metric.model == model}
