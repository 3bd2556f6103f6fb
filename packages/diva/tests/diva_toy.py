"""Tiny models and data for the tests: everything trains in a second or two on one core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from vfm.data import Batch, ImageTransform, SampleDraw, TrainingData, map_tensors, open_dataset
from vfm.data.synthetic.stages import ShapesPool
from vfm.data.synthetic.world import World
from vfm.models import ClipModel, build_clip, import_generator, load_clip, save_clip
from vfm.plugin import (
    Artifact,
    ClipCheckpoint,
    Context,
    Event,
    GeneratorCheckpoint,
    Pool,
    Stage,
)
from vfm_diva import DivaPrior, DivaTune, LogitNormal, Timesteps, UNet
from vfm_diva.generator.condition_map import ConditionMap
from vfm_diva.generator.generator import Generator, build_generator, load_generator
from vfm_diva.generator.inputs import MakeImageInputs, MakePriorInputs
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.prior.prior_task import PriorTask

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
UNET = UNet(block_out_channels=(8, 16))
GENERATOR = {"image_size": 8, "num_tokens": 2, "condition_width": 16, "network": UNET}
WORLD = World(image_size=16, attributes=(), variety=0.0, noise_share=0.0, foreign_share=0.0, zipf=0.0)


def make_pool(folder: Path) -> Pool:
    stage = ShapesPool(kind="shapes.pool", name="pool", num_samples=96, samples_per_shard=48, world=WORLD)
    return run(stage, folder)


def make_clip(folder: Path, *, seed: int = 0, **vision: Any) -> ClipCheckpoint:
    config = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], **vision}}
    return save_clip(build_clip(config, seed=seed), folder)


def make_prior(folder: Path, clip: ClipCheckpoint, **changes: Any) -> GeneratorCheckpoint:
    """Save a prior with random weights over this CLIP model's joint space."""
    generator = build_generator(embed_dim=clip.embed_dim, **{**GENERATOR, **changes})
    assert generator.condition_map is not None
    generator.condition_map.record_space(load_clip(clip))
    return generator.save(folder)


def make_stable_diffusion(folder: Path, *, prediction: str = "epsilon", width: int = 24) -> GeneratorCheckpoint:
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "source" / "unet")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "source" / "vae")
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    scheduler.save_pretrained(folder / "source" / "scheduler")
    return import_generator(str(folder / "source"), folder / "generator")


def run(stage: Stage, folder: Path, **inputs: Artifact) -> Any:
    """Run a stage as a recipe does; the inputs have the names of its refs."""
    directory, work = folder / "part", folder / "work"
    directory.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    return stage.run(context(stage, folder, **inputs))


def context(stage: Stage, folder: Path, **inputs: Artifact) -> Context:
    events: list[Event] = []
    paths = {ref: artifact.path for ref, artifact in inputs.items()}
    return Context(stage.name, folder / "part", folder / "work", paths, events.append)


def prior_config(**changes: Any) -> DivaPrior:
    settings = {
        "steps": 4,
        "global_batch_size": 16,
        "schedule": {"warmup_steps": 0},
        "log_every": 2,
        "image_size": 8,
        "denoiser": UNET,
        "runtime": {"device": "cpu"},
        **changes,
        "condition": {"num_tokens": 2, "width": 16, **changes.get("condition", {})},
    }
    return DivaPrior(name="prior", clip="clip", data="pool", **settings)


def tune_config(**changes: Any) -> DivaTune:
    settings = {"steps": 4, "global_batch_size": 16, "log_every": 2, "lr": 1e-3, "runtime": {"device": "cpu"}}
    settings["preset"] = "toy-prior"
    return DivaTune(name="diva", clip="clip", data="pool", generator="prior", **{**settings, **changes})


def prior_task(checkpoint: ClipCheckpoint, **changes: Any) -> PriorTask:
    clip = load_clip(checkpoint)
    return PriorTask(clip, build_generator(**{"embed_dim": clip.embed_dim, **GENERATOR, **changes}))


def make_image_inputs(
    clip: ClipModel,
    *,
    size: int = 8,
    shape: tuple[int, int, int] = (3, 8, 8),
    num_times: int = 1,
    timesteps: Timesteps = LogitNormal(mean=0.0, std=1.0),  # noqa: B008
    scale: tuple[float, float] | None = None,
) -> MakeImageInputs:
    transform = ImageTransform(size, "crop", scale=scale)
    return MakeImageInputs(transform, NoiseSampler(shape, num_times, timesteps), clip.preprocess)


def make_prior_inputs(task: PriorTask, text_share: float = 0.5) -> MakePriorInputs:
    tokenize, width = task.clip.tokenizer, task.clip.embed_dim
    images = make_image_inputs(task.clip)
    return MakePriorInputs(images, tokenize, "en", embed_dim=width, text_share=text_share, dropout=0.08)


def draw_of(seed: int) -> SampleDraw:
    """Return a draw with this seed."""
    return SampleDraw(seed, 0, 0)


def batch_of(pool: Pool, make: Any, size: int = 16) -> Batch[Any]:
    """Return the first step's batch."""
    data = TrainingData(open_dataset(pool), make, seed=3, global_batch_size=size)
    (batch,) = next(data.steps(0, 1))
    return batch


def call(task: Any) -> Any:
    """Return the `call` of `Task.accumulate`, which runs the task on a batch."""
    return lambda batch: task(batch.inputs)


def cut(batch: Batch[Any], size: int) -> Iterator[Batch[Any]]:
    """Yield the batch as micro-batches."""
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        yield Batch(map_tensors(batch.inputs, lambda tensor: tensor[part]), batch.keys[part])  # noqa: B023


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def load(clip: ClipCheckpoint, prior: GeneratorCheckpoint) -> tuple[ClipModel, Generator, ConditionMap | None]:
    generator = load_generator(prior)
    return load_clip(clip), generator, generator.condition_map
