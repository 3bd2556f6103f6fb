"""Tiny models, synthetic pairs and trainings for the tests; as a script, one of several processes of a training."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from clip_error_rule import assert_as_exact
from vfm.data import Batch, DatasetSpec, Shard, map_tensors, write_index, write_tar
from vfm.models import ClipModel, build_clip
from vfm.plugin import (
    Artifact,
    ClipCheckpoint,
    Context,
    Event,
    Lora,
    Pool,
    Runtime,
)
from vfm.train import distributed, fit, prepare_towers, seed_everything
from vfm_clip import (
    ClipTrain,
    Distillation,
    DistinctInfoNce,
    InfoNce,
    Siglip,
    Tower,
)
from vfm_clip.task import ClipInputs, ClipTask
from vfm_clip.towers import trained_towers

SIDE = 16
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": TEXT,
}
EVA: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "eva02_pico_patch8_32",
        "timm_pool": "token",
        "timm_proj": None,
    },
    "text_cfg": TEXT,
    "custom_text": True,
}
COLOURS = ["red", "lime", "blue", "yellow", "cyan", "magenta", "black", "white"]


def noisy(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with patch dropout, and with drop path if its vision tower supports it."""
    noise = {"patch_dropout": 0.5, **({"timm_drop_path": 0.4} if "timm_model_name" in config["vision_cfg"] else {})}
    return {**config, "vision_cfg": {**config["vision_cfg"], **noise}}


@dataclass
class Random:
    """Random images and tokens; sample i of step s is a function of (s, i). Processes take equal parts."""

    config: dict[str, Any]
    size: int
    weighted: bool = False

    def steps(
        self, start_step: int, num_steps: int, *, rank: int = 0, world_size: int = 1, micro_batch_size: int
    ) -> Iterator[list[Batch[ClipInputs]]]:
        share = self.size // world_size
        for step in range(start_step, num_steps):
            batch = self.batch(step)
            cuts = range(rank * share, (rank + 1) * share, micro_batch_size)
            stops = [min(start + micro_batch_size, (rank + 1) * share) for start in cuts]
            yield [part(batch, start, stop) for start, stop in zip(cuts, stops, strict=True)]

    def batch(self, step: int) -> Batch[ClipInputs]:
        side, length = self.config["vision_cfg"]["image_size"], TEXT["context_length"]
        draw = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (self.size, 3, side, side), generator=draw, dtype=torch.uint8)
        tokens = torch.randint(1, 49000, (self.size, length), generator=draw)
        tokens[self.size // 2] = tokens[0]  # an equal caption, in another micro-batch and process
        tokens[:, -1] = 49407  # the end of the text, where open_clip reads its features
        weight = torch.rand(self.size, generator=draw) if self.weighted else None
        return Batch(ClipInputs(images, tokens, weight=weight), [f"{step}-{i}" for i in range(self.size)])


def part(batch: Batch[ClipInputs], start: int, stop: int) -> Batch[ClipInputs]:
    """Return the samples from `start` to `stop` of a batch."""
    return Batch(map_tensors(batch.inputs, lambda tensor: tensor[start:stop]), batch.keys[start:stop])


LOSSES: dict[str, Any] = {
    "info_nce": InfoNce(),
    "distinct_info_nce": DistinctInfoNce(),
    "siglip": Siglip(),
    "distillation": Distillation(teacher="teacher", weight=0.5),  # type: ignore[arg-type]
}


def tiny_task(
    config: dict[str, Any],
    loss: str = "info_nce",
    *,
    chunk_size: int | None = None,
    rank: int | None = None,
    **options: Any,
) -> ClipTask:
    """Return a task over a model with random weights, with a teacher if its loss is distillation; LoRA with `rank`."""
    if loss == "siglip":
        config = {**config, "init_logit_bias": -5.0}
    if loss == "distillation":
        options["teacher"] = tiny_teacher(config)
    configured = LOSSES[loss].model_copy(update={"chunk_size": chunk_size})
    clip = build_clip(config, seed=0)
    if rank:
        options["vision"] = options["text"] = Tower(trained=Lora(rank=rank))
    towers = trained_towers(clip, options.pop("vision", Tower()), options.pop("text", Tower()))
    prepare_towers(towers)
    return ClipTask(clip, loss=configured, towers=towers, **options)


def tiny_teacher(config: dict[str, Any]) -> ClipModel:
    """Return another model for the same pixels and tokens, with another width and temperature."""
    vision = {**VIT["vision_cfg"], "image_size": config["vision_cfg"]["image_size"], "patch_size": 8}
    return build_clip({**VIT, "embed_dim": 12, "vision_cfg": vision, "init_logit_scale": 2.0}, seed=7)


def plan(**changes: Any) -> ClipTrain:
    """Return the configuration of one step."""
    settings = {"name": "clip", "data": "pool", "model": VIT, "steps": 1, "global_batch_size": 12, "log_every": 1}
    given = {**settings, "runtime": {"device": "cpu"}, **changes}
    return ClipTrain(**{name: value for name, value in given.items() if value is not None})


def train(folder: Path, plan: ClipTrain, task: ClipTask, data: Any = None) -> list[Event]:
    """Run `fit` in a folder; return its events."""
    events: list[Event] = []
    ctx = Context(plan.name, folder / "part", folder / "work", {}, events.append)
    config = task.model.config
    fit(task, data or Random(config, plan.global_batch_size), plan, ctx)
    return events


def gradients(task: ClipTask) -> dict[str, Tensor]:
    """Return the gradients of the last backward pass."""
    return {name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None}


def twin_gradients(
    config: dict[str, Any],
    micro_batch_size: int,
    world_size: int = 1,
    loss: str = "info_nce",
    dtype: torch.dtype = torch.float32,
    weighted: bool = False,
) -> dict[str, Tensor]:
    """Return the gradients of the plain twin of a step: one graph over all micro-batches of all processes.

    Each micro-batch has its own seed. The losses are written out here, independent of the tested code. In float64 the
    noise is the same, and the result is the reference of the error rule.
    """
    task = tiny_task(config, loss).train().to(dtype)
    size = plan().global_batch_size
    images, texts = [], []
    for rank in range(world_size):
        parts = next(
            Random(config, size).steps(0, 1, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
        )
        for index, batch in enumerate(parts):
            seed_everything(0, 0, index, rank)
            images.append(task.module.encode_image(task.model.pixels(batch.inputs.images).to(dtype), normalize=True))
            texts.append(task.module.encode_text(batch.inputs.tokens, normalize=True))
    logits = task.module.logit_scale.exp() * torch.cat(images) @ torch.cat(texts).T
    if loss == "distinct_info_nce":
        equal = torch.zeros(size, size, dtype=torch.bool)
        equal[0, size // 2] = equal[size // 2, 0] = True  # as `Random` has them
        logits = logits.masked_fill(equal, -torch.inf)
    if loss == "siglip":
        signs = 2 * torch.eye(size) - 1
        total = (-(signs * (logits + task.module.logit_bias))).exp().log1p().sum() / size
    else:
        losses = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2
        weight = Random(config, size, weighted).batch(0).inputs.weight
        total = losses.mean() if weight is None else (losses * weight).sum() / weight.sum()
    if loss == "distillation":
        teacher, inputs = tiny_teacher(config), Random(config, size).batch(0).inputs
        with torch.no_grad():
            module = teacher.module.eval().to(dtype)
            image, text, scale = module(teacher.pixels(inputs.images).to(dtype), inputs.tokens)
            target = scale * image @ text.T
        of_images = -(target.softmax(1) * logits.log_softmax(1)).sum() / size
        of_texts = -(target.softmax(0) * logits.log_softmax(0)).sum() / size
        total = total + 0.5 * (of_images + of_texts) / 2
    total.backward()
    return gradients(task)


def assert_twins(
    ours: dict[str, Tensor], *arguments: Any, plain: dict[str, Tensor] | None = None, **options: Any
) -> None:
    """Assert by the error rule that gradients are those of the plain twin; arguments as for `twin_gradients`.

    Args:
        ours: gradients to check.
        *arguments: of the twin.
        plain: gradients in fp32 whose error is the measure, the twin's by default.
        **options: of the twin.
    """
    exact = twin_gradients(*arguments, dtype=torch.float64, **options)
    assert_as_exact(ours, plain or twin_gradients(*arguments, **options), exact)


def halves(top: str, bottom: str) -> bytes:
    """Return an image of two colours, one above the other, as PNG."""
    image = Image.new("RGB", (24, 24), top)
    ImageDraw.Draw(image).rectangle((0, 12, 24, 24), bottom)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_pool(directory: Path, captions: Mapping[str, Mapping[str, list[str]]] | None = None) -> Pool:
    """Write an image of each pair of colours, `red on lime.png` and so on, with captions, into two tars.

    Args:
        directory: of the pool.
        captions: by key and language; default: `a picture of red on lime` in English.
    """
    keys = [f"{top} on {bottom}" for top in COLOURS for bottom in COLOURS if top != bottom]
    texts = captions or {key: {"en": [f"a picture of {key}"]} for key in keys}
    samples = [
        (key.replace(" ", "_"), {"png": halves(*key.split(" on ")), "json": json.dumps(texts[key]).encode()})
        for key in keys
        if key in texts
    ]
    directory.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, part in enumerate((samples[::2], samples[1::2])):
        path = directory / f"{number}.tar"
        shards.append(Shard.of(path, write_tar(path, part)))
    languages = sorted({language for text in texts.values() for language in text}, reverse=True)  # en before de
    spec = DatasetSpec(texts={language: f"json.{language}" for language in languages})
    return Pool.create(directory, num_samples=write_index(directory, shards, spec), languages=languages)


def run_stage(
    stage: ClipTrain,
    root: Path,
    *,
    work: Path | None = None,
    send: Callable[[Event], None] = lambda event: None,
    **inputs: Artifact,
) -> tuple[ClipCheckpoint, Context]:
    """Run the stage; inputs are named as in its refs."""
    directory = root / "part"
    directory.mkdir(parents=True, exist_ok=True)
    folders = {ref: artifact.path for ref, artifact in inputs.items()}
    ctx = Context(stage.name, directory, work or root / "work", folders, send)
    return stage.run(ctx), ctx


def copied(clip: ClipModel) -> ClipModel:
    """Return a copy of the model."""
    return ClipModel(deepcopy(clip.module), clip.config, clip.preprocess, clip.name)


def in_processes(world_size: int, root: Path, jobs: list[dict[str, Any]]) -> None:
    """Run one step of each job in one process group, since starting one is slow."""
    placed = [{**job, "folder": str(root / job["folder"])} for job in jobs]
    run_group(__file__, json.dumps(placed), world_size=world_size)


def run_in_group(file: str, word: str, root: Path, inputs: Mapping[str, Artifact]) -> None:
    """Run a test module in two processes of a group, with a word, a folder and the paths of inputs."""
    run_group(file, word, str(root), json.dumps({name: str(artifact.path) for name, artifact in inputs.items()}))


def run_group(file: str, *words: str, world_size: int = 2) -> None:
    """Run a module in each process of a group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, file, *words]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    for child in children:
        _, stderr = child.communicate(timeout=1800)
        assert child.returncode == 0, stderr


def main(jobs: list[dict[str, Any]]) -> None:
    """Run one step of each job in a process; the first process saves the gradients."""
    with distributed(Runtime(device="cpu")) as world:
        for job in jobs:
            options = {name: job.get(name) for name in ("chunk_size", "rank")}
            task = tiny_task(job["config"], job.get("loss", "info_nce"), **options)
            folder = Path(job["folder"])
            settings = plan(micro_batch_size=job["micro_batch_size"], **job.get("settings", {}))
            data = Random(job["config"], settings.global_batch_size, job.get("weighted", False))
            train(folder, settings, task, data)
            if world.is_main:
                save_file(gradients(task), folder / "gradients.safetensors")
                save_file(task.module.state_dict(), folder / "weights.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(sys.argv[1]))
