"""Small synthetic samples for the tests of `vfm.data`."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from vfm.data import (
    BatchMake,
    DatasetSpec,
    ImageTransform,
    Sample,
    SampleDraw,
    Shard,
    text_key,
    to_tensor,
    write_index,
    write_tar,
)
from vfm.data.samples.images import decode_image
from vfm.interfaces import Context, Pool

CROP = ImageTransform(8, scale=(0.5, 1.0))
EN = DatasetSpec(texts={"en": "txt"})


def draw_sample(number: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Draw an image that differs from every other number's."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(number: int, kind: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    """Return the encoded image of a number."""
    buffer = io.BytesIO()
    draw_sample(number, size).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int = 40_000, height: int = 40_000) -> bytes:
    """Return a PNG of a few bytes whose header declares a huge image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")):
        body += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return body


def members(number: int, **changes: bytes | None) -> dict[str, bytes]:
    """Return the members of a good sample of a tar; a change to None removes one."""
    good = {"png": encoded(number), "txt": f"caption {number}".encode(), **changes}
    return {name: data for name, data in good.items() if data is not None}


def make_pool(directory: Path, sizes: list[int], *, broken: dict[int, dict[str, bytes | None]] | None = None) -> Pool:
    """Write a pool of tars with the given numbers of samples; `broken` changes members of samples by number."""
    shards, number = [], 0
    directory.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(sizes):
        path = directory / f"{index:03d}.tar"
        rows = [(f"{n:06d}", members(n, **(broken or {}).get(n, {}))) for n in range(number, number + size)]
        write_tar(path, rows)
        shards.append(Shard.of(path, size))
        number += size
    return Pool.create(directory, num_samples=write_index(directory, shards, EN))


def write_row_groups(folder: Path, per_file: int, per_group: int) -> Path:
    """Write two Parquet tables in row groups of `per_group` rows, with keys that number all samples."""
    folder.mkdir()
    for file in range(2):
        numbers = range(file * per_file, (file + 1) * per_file)
        rows = [{"key": str(n), "image": encoded(n), "caption": f"caption {n}"} for n in numbers]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{file}.parquet", row_group_size=per_group)
    return folder


def json_member(**fields: Any) -> bytes:
    """Return a `json` member."""
    return json.dumps(fields, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Numbered:
    number: torch.Tensor
    seed: torch.Tensor
    image: torch.Tensor


def number_of(sample: Sample, draw: SampleDraw) -> Numbered:
    """Make a sample's number, the seed of its draw, and a random crop; workers can import this function."""
    image = ImageTransform(8, scale=(0.5, 1.0), flip=0.5)(sample.image, draw.seed)
    return Numbered(torch.tensor(int(sample.key)), torch.tensor(draw.seed), image)


def context(directory: Path, stage: str = "pool") -> Context:
    """Return a stage's context without a store."""
    directory.mkdir(parents=True, exist_ok=True)
    return Context(stage=stage, directory=directory, work=directory.with_name(directory.name + ".work"), inputs={})


@dataclass(frozen=True)
class DrawnTexts:
    texts: torch.Tensor
    seed: torch.Tensor


def drawn_texts(sample: Sample, draw: SampleDraw) -> DrawnTexts:
    """Make a number that identifies a sample's texts, after decoding its image; workers can import this function."""
    decode_image(sample.image, sample.key)
    texts = sorted(text for texts in sample.texts.values() for text in texts)
    return DrawnTexts(torch.tensor(text_key("\0".join(texts), "", len(texts)) >> 1), torch.tensor(draw.seed))


@dataclass(frozen=True)
class NumberTogether(BatchMake[tuple[int, Image.Image], Numbered]):
    """Makes a sample's number, the seed of its draw, and a random crop plus noise that is drawn for the batch."""

    def read(self, sample: Sample) -> tuple[int, Image.Image]:
        return int(sample.key), decode_image(sample.image, sample.key)

    def use(self, content: tuple[int, Image.Image], draw: SampleDraw) -> tuple[int, torch.Tensor]:
        number, image = content
        return number, to_tensor(CROP.apply(image, draw.seed))

    def join(self, uses: Sequence[tuple[int, torch.Tensor]], draws: Sequence[SampleDraw]) -> Numbered:
        numbers, images = zip(*uses, strict=True)
        noise = torch.tensor([draw.seed % 100 for draw in draws], dtype=torch.uint8)
        noisy = torch.stack(images) + noise[:, None, None, None]
        return Numbered(torch.tensor(numbers), torch.tensor([draw.seed for draw in draws]), noisy)


def number_alone(sample: Sample, draw: SampleDraw) -> Numbered:
    """Make the inputs of `NumberTogether` for one sample; workers can import this function."""
    noise = torch.tensor(draw.seed % 100, dtype=torch.uint8)
    return Numbered(torch.tensor(int(sample.key)), torch.tensor(draw.seed), CROP(sample.image, draw.seed) + noise)
