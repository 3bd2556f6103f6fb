"""A filled cache has the model's tensor of every crop; bad samples are reported."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vfm.base import UserError
from vfm.data import MakeCrops, SampleCrops, SampleDraw, fill_cache
from vfm.data.index.source import open_dataset
from vfm.data.loading.sample_cache import CACHE_FOLDER, CachedTensors, CacheWriter
from vfm.data.loading.transforms import ImageTransform
from vfm.data.samples.sample import BadSample
from vfm.data.synthetic.stages import ShapesPool
from vfm.data.synthetic.world import World
from vfm.interfaces import Context, Pool

CROPS = MakeCrops(ImageTransform(8, scale=(0.2, 0.8), flip=0.5), 3, seed=4)


def context(folder: Path) -> Context:
    for name in ("part", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Context("cache", folder / "part", folder / "work", {})


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    world = World(image_size=16)
    return ShapesPool(name="pool", num_samples=10, samples_per_shard=10, world=world).run(context(tmp_path / "pool"))


def colours(crops: SampleCrops) -> Tensor:
    """Return the mean colour of each crop, as a model of three channels."""
    return crops.images.double().mean(dim=(3, 4))


def filled(ctx: Context, pool: Pool, *, max_bad_fraction: float = 0.2) -> CachedTensors:
    writer = CacheWriter(
        ctx.work / CACHE_FOLDER, num_samples=10, num_crops=3, shape=(3,), dtype="fp32", samples_per_shard=4
    )
    how = {"batch_size": 3, "workers": 0, "max_bad_fraction": max_bad_fraction}
    fill_cache(writer, ctx, open_dataset(pool), CROPS, colours, **how)
    facts = {"data": "pool", "producer": "colours", "crop_scale": (0.2, 0.8), "flip": 0.5, "seed": 4}
    return CachedTensors(writer.publish(ctx.directory, **facts))


def test_every_crop_has_its_tensor(tmp_path: Path, pool: Pool) -> None:
    cached, source = filled(context(tmp_path / "cache"), pool), open_dataset(pool)
    for index in range(10):
        for crop in range(3):
            picture = CROPS.transform(source[index].image, SampleDraw.of(4, crop, index).seed)
            assert np.allclose(cached[index, crop], picture.double().mean(dim=(1, 2)), atol=1e-4)


def test_epochs_cycle_through_the_crops(tmp_path: Path, pool: Pool) -> None:
    cached = filled(context(tmp_path / "cache"), pool)
    assert [cached.crop_in(step, 5) for step in range(8)] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert [cached.crop_in(step, 4) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_bad_sample_is_reported_and_too_many_stop_the_filling(tmp_path: Path, pool: Pool) -> None:
    (file,) = pool.path.glob("*.tar")
    with tarfile.open(file) as tar:
        member = next(member for member in tar if member.name == "00000002.jpg")
    content = bytearray(file.read_bytes())
    content[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    file.write_bytes(bytes(content))
    ctx = context(tmp_path / "cache")
    cached = filled(ctx, pool)
    assert dict(ctx.bad) == cached.cache.bad_samples == {"unreadable_image": 1}
    with pytest.raises(BadSample, match="unreadable_image"):
        cached[2, 0]
    assert torch.from_numpy(cached[3, 0]).any()
    with pytest.raises(UserError, match="1 of 10 samples are bad"):
        filled(context(tmp_path / "strict"), pool, max_bad_fraction=0.05)
