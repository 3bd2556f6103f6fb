"""Embed images, videos and texts by any model, in memory or into a file. Imports torch."""

# N items, D width

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vfm.api.inputs import (
    AnyImage,
    AnyModel,
    artifact_of,
    full_name,
    image_names,
    open_device,
    open_encoder,
    open_images,
    read_images,
)
from vfm.api.paths import PATHS, AnyPath
from vfm.api.progress import Listener, listener, shown_by
from vfm.api.results import Results, skipped_note
from vfm.base import UserError, load_function
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.eval import check_finite, embed_dataset, open_writer
from vfm.eval.encode.embeddings import Writer
from vfm.interfaces import Artifact, VideoClassifier, naming_extras
from vfm.models import PooledVision
from vfm.plugin import ReadSettings

IMAGE_FILES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


@dataclass(frozen=True, repr=False)
class Embeddings(Results):
    """Unit vectors of images, videos or texts.

    Attributes:
        keys: Names of the N items: keys of a dataset, paths of images, or the texts themselves.
        texts: The first caption or the class name of each item. None for an item with neither.
        vectors: float32 (N, D).
        model: Full name of the model.
        skipped: Number of items that cannot be read, by reason.
    """

    keys: list[str]
    texts: list[str | None]
    vectors: NDArray[np.float32]
    model: str
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def title(self) -> str:
        """One line about the results."""
        return f"{len(self.keys):,} embeddings of width {self.vectors.shape[1]}{skipped_note(self.skipped)}"

    def table(self) -> Any:
        """Build an Arrow table with the columns key, text, embedding."""
        flat = pa.array(self.vectors.ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.vectors.shape[1])
        columns = {"key": pa.array(self.keys, pa.string()), "text": pa.array(self.texts, pa.string())}
        return pa.table({**columns, "embedding": vectors})

    def save(self, file: AnyPath) -> Path:
        """Write the embeddings to a .parquet or .npy file, as `vfm embed` does.

        Raises:
            UserError: If the file has another suffix.
        """
        with open_writer(Path(file), self.model) as writer:
            writer.write(self.keys, self.texts, self.vectors)
        return Path(file)


def embed(
    model: AnyModel,
    data: AnyPath | Artifact | AnyImage | Iterable[AnyImage] | None = None,
    *,
    texts: Iterable[str] | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    batch_size: int = 64,
    max_bad_fraction: float = 0.05,
    progress: bool = True,
) -> Embeddings:
    """Embed images, videos or texts. Give either `data` or `texts`.

    All embeddings are held in memory. The command `vfm embed` writes a dataset of any size to a file.

    Args:
        model: Folder or artifact of a checkpoint, an open_clip or timm name (`ViT-B-32,openai`: with its tag),
            `hf-hub:org/model`, or a loaded model (`vfm.models.load_clip`, ...). Videos need a video classifier.
        data: Dataset artifact, its folder, a path in any format of `data.pairs`, or one or several images (paths or
            PIL images).
        texts: Texts, for a CLIP model.
        pretrained: Tag of an open_clip name, or a file of weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        batch_size: Images per forward pass.
        max_bad_fraction: Tolerated fraction of images that cannot be read.
        progress: Show a progress bar.

    Returns:
        Unit vectors, float32 (N, D), with their keys.

    Raises:
        UserError: If there is no such model or data, too many images cannot be read, or an embedding is not finite.
    """
    if (data is None) == (texts is None):
        raise UserError("embed: give either data (images) or texts")
    if batch_size < 1:
        raise UserError(f"embed: batch_size: must be at least 1, got {batch_size}")
    memory = _Memory()
    if texts is not None:
        skipped = _embed_texts(model, _listed("texts", texts), memory, pretrained, device, batch_size)
    elif isinstance(data, (*PATHS, Artifact)) and not _is_image_file(data):
        reading = ReadSettings(batch_size, max_bad_fraction)
        _, skipped = write_embeddings(model, data, memory, listener(progress), pretrained, device, reading)
    else:
        if isinstance(data, (*PATHS, Image.Image)):
            images = [data]
        else:
            images = _listed("data", data)
        skipped = _embed_images(model, images, memory, pretrained, device, batch_size)
    return Embeddings(memory.keys, memory.texts, np.concatenate(memory.parts), full_name(model, pretrained), skipped)


def write_embeddings(
    model: AnyModel,
    data: AnyPath | Artifact,
    writer: Writer,
    shown: Listener,
    pretrained: str | None,
    device: str,
    reading: ReadSettings,
    options: Mapping[str, Any] | None = None,
) -> tuple[int, Counter[str]]:
    """Write the embeddings of the images or videos of a dataset, in its order.

    `options` are fields of `data.pairs`, as in `open_images`.

    Returns:
        The number of embeddings, and the number of bad samples by reason.

    Raises:
        UserError: If there is no such model or data, too many samples cannot be read, or an embedding is not finite.
    """
    with TemporaryDirectory() as folder:
        classifier = artifact_of(model, VideoClassifier)
        if classifier:
            if options:
                raise UserError(f"data-option: expected images, got a classifier of videos, {model}")
            with naming_extras("a classifier of videos"):
                embed_videos = load_function("vfm.api.videos:embed")
            with shown_by(shown, "embed", Path(folder)) as ctx:
                written: tuple[int, Counter[str]] = embed_videos(ctx, classifier, data, writer, device, reading)
                return written
        source = open_images(data, Path(folder), options)
        encoder = open_encoder(model, pretrained, open_device(device))
        with shown_by(shown, "embed", Path(folder)) as ctx, writer:
            bad = embed_dataset(ctx, source, encoder, writer, reading, full_name(model, pretrained))
        return len(source) - bad.total(), bad


def _is_image_file(data: AnyPath | Artifact) -> bool:
    """Check by the suffix whether a path is a single image. Other files contain many images."""
    if isinstance(data, Artifact):
        return False
    return os.fspath(data).lower().endswith(IMAGE_FILES) and os.path.isfile(data)


def _embed_images(
    model: AnyModel, images: Sequence[AnyImage], writer: Writer, pretrained: str | None, device: str, batch_size: int
) -> Counter[str]:
    if not images:
        raise UserError("embed: expected at least one image, got none")
    encoder = open_encoder(model, pretrained, open_device(device))
    for start in range(0, len(images), batch_size):  # only the pixels of one batch are in memory
        batch = images[start : start + batch_size]
        vectors = encoder.encode_images(read_images(batch), batch_size).numpy()
        names = image_names(batch, start)
        check_finite(vectors, full_name(model, pretrained), names)
        writer.write(names, [None] * len(names), vectors)
    return Counter()


def _embed_texts(
    model: AnyModel, texts: Sequence[str], writer: Writer, pretrained: str | None, device: str, batch_size: int
) -> Counter[str]:
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"embed: expected a list of texts, got {texts!r:.60}")
    encoder = open_encoder(model, pretrained, open_device(device))
    if isinstance(encoder, PooledVision):
        raise UserError(f"{full_name(model, pretrained)}: it has no text tower; texts need a CLIP model")
    vectors = encoder.encode_texts(texts, batch_size).numpy()
    check_finite(vectors, full_name(model, pretrained), list(texts))
    writer.write(list(texts), list(texts), vectors)
    return Counter()


def _listed(argument: str, values: Any) -> list[Any]:
    """Convert an argument to a list. Arrays, columns of data frames and generators are accepted."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"embed: {argument}: expected a list, got {values!r:.60}")
    return list(values)


@dataclass
class _Memory:
    """A writer that holds the embeddings in memory."""

    keys: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    parts: list[NDArray[np.float32]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def write(self, keys: list[str], texts: list[str | None], vectors: NDArray[np.float32]) -> None:
        """Append a batch."""
        self.keys += keys
        self.texts += texts
        self.parts.append(vectors)
