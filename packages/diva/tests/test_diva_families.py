"""Every family of CLIP models can be tuned by every family of generators, and only the vision tower changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diva_families import CONTEXT, FAMILIES, GENERATORS, POOLED, PROMPT_LENGTH, family_clip, family_generator
from diva_toy import same, weights
from test_tune import train
from vfm.data import Batch
from vfm.models import load_clip
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint
from vfm_diva import Feedback
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import load_generator
from vfm_diva.generator.inputs import TuneInputs
from vfm_diva.tune.tune_task import TuneTask

# Each generator has another choice of parts, so that every part is tested with every CLIP model.
PARTS: dict[str, dict[str, Any]] = {
    "sd": {"condition": {"type": "patches", "share": 0.5}, "prompt": {"combine": "add"}, "adapter": {"type": "linear"}},
    "sd_v": {
        "condition": {"type": "pooled_patches"},
        "adapter": {"type": "mlp"},
        "trained": {"type": "lora", "rank": 2},
    },
    "sdxl": {"condition": {"type": "patches"}, "prompt": {"combine": "concatenate"}, "adapter": {"type": "mlp"}},
    "unclip": {"condition": {"type": "embedding"}, "trained": {"type": "lora", "rank": 2}},
    "sd3": {"condition": {"type": "cls"}, "adapter": {"type": "mlp"}, "trained": {"type": "last_blocks", "blocks": 1}},
    "flux": {
        "condition": {"type": "embedding"},
        "prompt": {"combine": "add"},
        "adapter": {"type": "linear"},
        "image_size": 16,
    },
}


@pytest.fixture(scope="session")
def family_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClipCheckpoint]:
    return {name: family_clip(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture(scope="session")
def family_generators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GeneratorCheckpoint]:
    return {name: family_generator(name, tmp_path_factory.mktemp(name)) for name in GENERATORS}


def a_prompt(generator: str) -> Conditioning:
    draws = torch.Generator().manual_seed(0)
    pooled = torch.randn(1, POOLED, generator=draws) if generator in ("sdxl", "sd3", "flux") else None
    return Conditioning(torch.randn(1, PROMPT_LENGTH, CONTEXT, generator=draws), pooled)


def a_task(clip: ClipCheckpoint, generator: GeneratorCheckpoint, name: str, **changes: Any) -> TuneTask:
    feedback = Feedback(**{"anchor": {"type": "none"}, **PARTS[name], **changes})
    return TuneTask(load_clip(clip), load_generator(generator), feedback, prompt=a_prompt(name))


def a_batch(task: TuneTask, size: int = 4) -> Batch[TuneInputs]:
    draws = torch.Generator().manual_seed(1)

    def images(side: int) -> torch.Tensor:
        return torch.randint(256, (size, 3, side, side), generator=draws, dtype=torch.uint8)

    inputs = TuneInputs(
        images=images(task.clip.preprocess.image_size),
        target_images=images(task.image_size),
        noise=torch.randn(size, 2, *task.generator.noise_shape_at(task.image_size), generator=draws),
        times=torch.rand(size, 2, generator=draws),
        patch_draws=torch.rand(size, 16, generator=draws)[:, : task.condition.num_draws],
    )
    return Batch(inputs, [str(number) for number in range(size)])


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("clip", FAMILIES)
def test_every_pair_trains_ten_steps(
    clip: str,
    generator: str,
    family_clips: dict[str, ClipCheckpoint],
    family_generators: dict[str, GeneratorCheckpoint],
    tmp_path: Path,
) -> None:
    task = a_task(family_clips[clip], family_generators[generator], generator)
    batch = a_batch(task)
    first = task(batch.inputs)[0].item()
    held = (task.denoiser.module, task.space.module)
    frozen = [weights(part) for part in held]
    train(task, batch, tmp_path / "work", steps=10, global_batch_size=4, lr=1e-3)
    assert task(batch.inputs)[0].item() < first
    assert all(same(old, weights(part)) for old, part in zip(frozen, held, strict=True))
    source, made = (weights(load_clip(model).module) for model in (family_clips[clip], task.export(tmp_path / "made")))
    assert source.keys() == made.keys()
    moved = {name for name in source if not torch.equal(source[name], made[name])}
    assert moved
    assert all(name.startswith("visual.") for name in moved)
    if "trained" in PARTS[generator] and PARTS[generator]["trained"]["type"] == "last_blocks":
        last = {"openai": "resblocks.1", "dfn": "resblocks.2"}.get(clip, "blocks.1")
        assert not [name for name in moved if "blocks." in name and last not in name]
        assert not [name for name in moved if "embed" in name or "conv1" in name or "cls_token" in name]
