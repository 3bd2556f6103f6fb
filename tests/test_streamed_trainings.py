"""Each training on tars that arrive ends with the weights of a training on an index of the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vfm.data import open_stream, write_tar
from vfm.data.pairs.stages import Pairs
from vfm.data.streaming.stages import Stream
from vfm.data.synthetic.stages import ShapesPool
from vfm.data.synthetic.world import World
from vfm.models import build_clip, load_clip, save_clip
from vfm.plugin import Artifact, Context, Stage
from vfm_clip import ClipTrain
from vfm_diva import DivaPrior, DivaTune, UNet
from vfm_diva.generator.generator import build_generator
from vfm_eva import EvaPretrain

NUM = 256  # samples, all of which are in the single step, whose draws then are those of the same numbers
CLIP = "ViT-Pico-8-32"
UNET = UNet(block_out_channels=(8, 16))
STEP: dict[str, Any] = {
    "data": "data", "steps": 1, "global_batch_size": NUM, "lr": 0.1, "optimizer": {"type": "sgd"},
    "schedule": {"warmup_steps": 0}, "runtime": {"device": "cpu"},
}  # fmt: skip
TRAININGS: dict[str, Stage] = {
    "clip": ClipTrain(name="clip", model=CLIP, **STEP),
    "eva": EvaPretrain(name="eva", teacher="clip", model="eva02_pico_patch8_32", **STEP),
    "prior": DivaPrior(name="prior", clip="clip", image_size=8, denoiser=UNET, **STEP),
    "tune": DivaTune(name="tune", clip="clip", generator="prior", preset="toy-prior", **STEP),
}


def run(stage: Stage, folder: Path, **inputs: Artifact) -> Any:
    """Run a stage."""
    (folder / "part").mkdir(parents=True)
    (folder / "work").mkdir()
    paths = {name: artifact.path for name, artifact in inputs.items()}
    return stage.run(Context(stage.name, folder / "part", folder / "work", paths))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Make a list of tars, an index of the same samples in the order of the stream, and models."""
    root = tmp_path_factory.mktemp("inputs")
    world = World(image_size=16, attributes=())
    pool = run(ShapesPool(name="pool", num_samples=NUM, samples_per_shard=64, world=world), root / "pool")
    tars = run(Stream(name="tars", path=str(pool.path), texts="json.en", lanes=1), root / "tars")
    stream = open_stream(tars)
    places = stream.order(seed=0, shuffle_shards=1).of_epochs(0, NUM)
    samples = [stream.sample(index, epoch) for epoch, index in places]
    assert len({sample.key for sample in samples}) == NUM
    rows = [
        (f"{number:04d}", {"png": each.image, "json": json.dumps({"en": each.texts["en"], "uid": each.uid}).encode()})
        for number, each in enumerate(samples)
    ]
    write_tar(root / "ordered.tar", rows)
    index = run(Pairs(name="index", path=str(root / "ordered.tar"), texts="json.en"), root / "index")
    clip = save_clip(build_clip(CLIP, seed=0), root / "clip")
    generator = build_generator(embed_dim=clip.embed_dim, image_size=8, num_tokens=2, condition_width=16, network=UNET)
    assert generator.condition_map
    generator.condition_map.record_space(load_clip(clip))
    return {"tars": tars, "index": index, "clip": clip, "prior": generator.save(root / "prior")}


@pytest.mark.parametrize("name", TRAININGS)
def test_streamed_weights_are_indexed_weights_in_the_same_order(
    name: str, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    models = {key: inputs[key] for key in ("clip", "prior")}
    streamed, indexed = (
        run(TRAININGS[name], tmp_path / data, data=inputs[data], **models).path for data in ("tars", "index")
    )
    files = sorted(file.relative_to(indexed) for file in indexed.rglob("*.safetensors"))
    assert files
    for file in files:
        torch.testing.assert_close(load_file(streamed / file), load_file(indexed / file), rtol=1e-4, atol=1e-6)
