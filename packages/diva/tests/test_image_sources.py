"""Diffusion feedback needs no captions: it trains on any pictures that `data.images` indexes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diva_toy import prior_config, run, same, tune_config, weights
from vfm.data import DatasetSpec, Shard, write_index, write_tar
from vfm.data.pairs.stages import Images
from vfm.models import load_clip
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint, Pool

NUM_PICTURES = 10


def pictures() -> dict[str, bytes]:
    """Return PNG files of several sizes, the first one grey."""
    generator = np.random.default_rng(0)
    made = {}
    for number in range(NUM_PICTURES):
        image = Image.fromarray(generator.integers(0, 256, (20 + number, 30, 3), np.uint8))
        buffer = io.BytesIO()
        (image if number else image.convert("L")).save(buffer, "PNG")
        made[f"{number}.png"] = buffer.getvalue()
    return made


def write_source(form: str, folder: Path) -> Path:
    files = pictures()
    for name, content in files.items() if form in ("folder", "list") else ():
        (folder / "flat").mkdir(parents=True, exist_ok=True)
        (folder / "flat" / name).write_bytes(content)
    if form == "folder":
        return folder / "flat"
    if form == "list":
        (folder / "list.txt").write_text("".join(f"flat/{name}\n" for name in files))
        return folder / "list.txt"
    if form == "tar":
        with tarfile.open(folder / "pictures.tar", "w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return folder / "pictures.tar"
    images = [{"bytes": content, "path": name} for name, content in files.items()]
    pq.write_table(pa.table({"image": images}), folder / "pictures.parquet", write_page_checksum=True)
    return folder / "pictures.parquet"


@pytest.mark.parametrize("form", ["folder", "tar", "list", "parquet"])
def test_pictures_without_captions_tune_a_vision_tower(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, tmp_path: Path, form: str
) -> None:
    path = write_source(form, tmp_path)
    data = run(Images(name="images", path=str(path)), tmp_path / "images")
    assert data.num_samples == NUM_PICTURES
    stage = tune_config(steps=2, global_batch_size=4)
    tuned = run(stage, tmp_path / "tune", clip=clip, pool=data, prior=prior)
    before, after = load_clip(clip), load_clip(tuned)
    assert not same(weights(before.module.visual), weights(after.module.visual))
    assert same(weights(before.module.transformer), weights(after.module.transformer))


@pytest.mark.parametrize("languages", [["en", "de"], []], ids=["another language", "no captions"])
def test_a_prior_over_images_needs_no_caption_of_a_picture(
    clip: ClipCheckpoint, tmp_path: Path, languages: list[str]
) -> None:
    records = [{languages[number % 2]: ["a caption"]} if languages else {} for number in range(NUM_PICTURES)]
    members = [
        (f"{number:04d}", {"png": content, "json": json.dumps(record).encode()})
        for number, (content, record) in enumerate(zip(pictures().values(), records, strict=True))
    ]
    shards = [Shard.of(tmp_path / "pool.tar", write_tar(tmp_path / "pool.tar", members))]
    (tmp_path / "pool").mkdir()
    spec = DatasetSpec(texts={language: f"json.{language}" for language in languages})
    pool = Pool.create(tmp_path / "pool", num_samples=write_index(tmp_path / "pool", shards, spec), languages=languages)
    config = prior_config(condition={"source": "image"}, steps=2, global_batch_size=4)
    assert run(config, tmp_path / "prior", clip=clip, pool=pool).path.is_dir()
