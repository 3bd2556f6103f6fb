"""Data sets of plain colours, and encoders that recognise them or their opposites, for the tests of `vfm.eval`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.data import DatasetSpec, Shard, write_index, write_tar
from vfm.data.choices.choices import Choice, write_choices
from vfm.interfaces import Artifact, ChoiceDataset, ClipCheckpoint, Context, Event, LabeledDataset, Pool
from vfm.models import build_clip, save_clip

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
}
NAMES = list(COLOURS)
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def png(name: str, noise: int = 0) -> bytes:
    """Draw an image of one colour; `noise` > 0 is the seed of speckles that keep the colour."""
    pixels = np.tile(np.array(COLOURS[name], np.uint8), (16, 16, 1))
    if noise:
        speckle = np.random.default_rng(noise).integers(0, 60, pixels.shape)
        pixels = np.clip(pixels.astype(int) + np.where(pixels > 127, -speckle, speckle), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class ColourModel:
    """An encoder of colours in images and texts; with `sign` -1 it confuses each with its opposite."""

    sign: float = 1.0
    module: nn.Module = field(default_factory=nn.Module)

    def __post_init__(self) -> None:
        self.module.logit_scale = nn.Parameter(torch.tensor(100.0).log())

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        means = torch.tensor(np.array([np.asarray(image).mean(axis=(0, 1)) for image in images])).float()
        return F.normalize(self.sign * (means / 127.5 - 1), dim=-1)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        found = [next(COLOURS[word] for word in text.split() if word in COLOURS) for text in texts]
        return F.normalize(torch.tensor(found).float() / 127.5 - 1, dim=-1)


def labeled(directory: Path, num_samples: int = 42, *, broken: Sequence[int] = (), classes: int = 7) -> LabeledDataset:
    """Write images of all colours in turn, each with other speckles; those in `broken` are unreadable."""
    spec = DatasetSpec(label_key="cls", class_names=NAMES[:classes])
    images = [b"no image" if n in broken else png(NAMES[n % classes], n + 1) for n in range(num_samples)]
    rows = [(f"{n:04d}", {"png": image, "cls": str(n % classes).encode()}) for n, image in enumerate(images)]
    return LabeledDataset.create(
        directory,
        num_samples=write_rows(directory, rows, spec),
        class_names=spec.class_names,
        templates=["a {} picture", "it is {} ."],
    )


def pool(directory: Path, *, num_samples: int = 7, captions: int = 2) -> Pool:
    """Write one image per colour, each with several captions (the first with one) in two languages."""
    spec = DatasetSpec(texts={"en": "txt.lines", "de": "json.de"})
    rows = [
        (
            f"{n:04d}",
            {
                "png": png(NAMES[n]),
                "txt": "\n".join(f"{NAMES[n]} number {c}" for c in range(captions if n else 1)).encode(),
                "json": f'{{"de": "{NAMES[n]} auf deutsch"}}'.encode(),
            },
        )
        for n in range(num_samples)
    ]
    return Pool.create(directory, num_samples=write_rows(directory, rows, spec), languages=["en", "de"])


def pairs(directory: Path, num_pairs: int = 6) -> ChoiceDataset:
    """Write pairs of two colours; every second one lists its statements in reverse order."""
    items = []
    for n in range(num_pairs):
        one, other = NAMES[n % 7], NAMES[(n + 1) % 7]
        statements, truth = [f"it is {one}", f"it is {other}"], [0, 1]
        if n % 2:
            statements, truth = statements[::-1], truth[::-1]
        pattern = "colour" if n < num_pairs // 2 else "tone"
        items.append(Choice(f"pair{n}", pattern, [png(one), png(other)], statements, truth))
    return write_choices(directory, items)


def sugarcrepe(directory: Path) -> ChoiceDataset:
    """Write items of one image, a right and a wrong caption."""
    items = [Choice(str(n), "swap", [png(NAMES[n])], [NAMES[n], NAMES[(n + 3) % 7]], [0, -1]) for n in range(7)]
    return write_choices(directory, items)


def tiny_clip(directory: Path, seed: int) -> ClipCheckpoint:
    """Save a CLIP model with random weights."""
    return save_clip(build_clip(TINY_CLIP, seed=seed), directory)


@dataclass
class Run:
    """A context and its events."""

    ctx: Context
    events: list[Event]

    @property
    def bad(self) -> Counter[str]:
        return self.ctx.bad


def run_in(directory: Path, **inputs: Artifact) -> Run:
    """Return a stage's context with these artifacts as inputs."""
    events: list[Event] = []
    directory.mkdir(parents=True, exist_ok=True)
    paths = {name: artifact.path for name, artifact in inputs.items()}
    return Run(Context("evaluate", directory, directory / "work", paths, events.append), events)


def write_rows(directory: Path, rows: list[tuple[str, dict[str, bytes]]], spec: DatasetSpec) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    write_tar(directory / "0.tar", rows)
    return write_index(directory, [Shard.of(directory / "0.tar", len(rows))], spec)
