"""Search of pictures by texts or by other pictures, in embeddings that `vfm embed` has written. Imports torch."""

# Q queries, N entries of the index, D width

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor

from vfm.api.inputs import (
    AnyEncoder,
    full_name,
    open_device,
    open_encoder,
    open_images,
    read_images,
)
from vfm.api.prediction import similarities
from vfm.base import UserError, redacted
from vfm.data import BadSample, Source, decode_image
from vfm.data.samples.contact_sheet import SIDE, contact_sheet
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.eval import check_finite, read_embeddings
from vfm.eval.encode.embeddings import Embeddings
from vfm.models import PooledVision
from vfm.storage import files

Shown = tuple[Image.Image, str]
"""A picture of a sheet, and its caption."""


@dataclass(frozen=True)
class Hit:
    """An entry of the index: its row, its key and text, and its cosine similarity to the query."""

    row: int
    key: str
    text: str
    score: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        queries: texts or paths of pictures, Q.
        hits: the most similar entries of each query, the best first.
        index: the embeddings.
    """

    queries: list[str]
    hits: list[list[Hit]]
    index: Embeddings

    def sheet(self, data: str) -> Image.Image:
        """Draw a row for each query: the query itself, then the pictures that were found.

        Args:
            data: the dataset of the index: the folder of an artifact, or a path as `data.pairs` takes it.

        Raises:
            UserError: there is no such dataset, or it lacks an entry of the index.
        """
        with TemporaryDirectory() as folder:
            source = open_images(data, Path(folder))
            pictures = [
                shown
                for query, hits in zip(self.queries, self.hits, strict=True)
                for shown in (_shown_query(query), *(_shown_hit(source, hit) for hit in hits))
            ]
        return contact_sheet(pictures, columns=1 + len(self.hits[0]))


def search(
    queries: Sequence[str],
    index: Path,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    top: int = 9,
    device: str = "auto",
    warn: Callable[[str], None],
) -> SearchResult:
    """Find the entries of an index that are most similar to texts or pictures.

    Args:
        queries: each a picture if there is such a file, else a text.
        index: embeddings, as `vfm embed` writes them.
        model: a model as `vfm embed` takes it; None: the one that made the index.
        pretrained: tag of an open_clip name, or a file of weights.
        top: number of entries for each query.
        device: auto, cpu, cuda, cuda:1 or mps.
        warn: called with a line if the index was made with another model.

    Raises:
        UserError: the index, the model or a picture does not exist, a text is empty, or it is searched with a model
            without a text tower.
    """
    for query in queries:
        _check_query(query)
    known = read_embeddings(index)
    if model is None:
        model, pretrained = _model_of(known, index)
    name = full_name(model, pretrained)
    vectors = _encode(open_encoder(model, pretrained, open_device(device)), name, queries)
    check_finite(vectors, name, list(queries))
    best = similarities(vectors, name, known, index, warn).topk(min(top, len(known.keys)))
    hits = [
        [Hit(row, known.keys[row], known.texts[row], score) for row, score in zip(rows, scores, strict=True)]
        for rows, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return SearchResult(list(queries), hits, known)


def kept_place(data: str) -> str:
    """Return the path of a dataset as an index keeps it: from any working directory, without credentials."""
    parts = data.split("::") if data else []
    return "::".join(
        redacted(one) if files.is_remote(one) else os.path.abspath(os.path.expanduser(one)) for one in parts
    )


def _check_query(query: str) -> None:
    if not query.strip():
        raise UserError(f"expected words or the file of a picture to search for, got {query!r}")
    if not os.path.isfile(query) and query.lower().endswith(tuple(f".{ending}" for ending in IMAGE_EXTENSIONS)):
        raise UserError(f"{query}: no such picture")


def _model_of(known: Embeddings, index: Path) -> tuple[str, str | None]:
    """Return the name and the tag of the model that made an index."""
    if not known.model or known.model.startswith("a loaded "):
        raise UserError(f"{index}: the file does not have the name of its model; give --model")
    name, _, tag = known.model.partition(" ")
    return (known.model, None) if Path(known.model).exists() or not tag else (name, tag)


def _encode(encoder: AnyEncoder, name: str, queries: Sequence[str]) -> Tensor:
    """Return the unit vectors of texts and pictures, (Q, D)."""
    vectors = []
    for query in queries:
        if os.path.isfile(query):
            vectors.append(encoder.encode_images(read_images([query])))
        elif isinstance(encoder, PooledVision):
            raise UserError(f"{query!r}: no such picture, and {name} has no text tower to search by words")
        else:
            vectors.append(encoder.encode_texts([query]))
    return torch.cat(vectors)


def _shown_query(query: str) -> Shown:
    if os.path.isfile(query):
        return read_images([query])[0], Path(query).name
    return Image.new("RGB", (SIDE, SIDE), "gainsboro"), query


def _shown_hit(source: Source, hit: Hit) -> Shown:
    caption = f"{hit.score:.3f}  {hit.text or hit.key}"
    for number in range(hit.row, len(source)):  # later by as many as samples before it are bad
        if source.key(number) == hit.key:
            try:
                return decode_image(source[number].image, hit.key), caption
            except BadSample as bad:
                raise UserError(f"{source.where(number)}: {bad.reason.replace('_', ' ')}") from None
    raise UserError(f"no sample has the key {hit.key!r}: --data is not the dataset of the index, or has changed")
