"""Image search by text or by image, in embeddings written by `vfm embed`. Imports torch."""

# Q queries, N entries of the index, D width

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vfm.api.inputs import AnyEncoder, full_name, open_device, open_encoder, open_images, read_images
from vfm.api.paths import PATHS, AnyPath
from vfm.api.prediction import similarities
from vfm.api.results import Results, as_table
from vfm.base import UserError, redacted
from vfm.data import IMAGE_EXTENSIONS, BadSample, Source, decode_image
from vfm.data.samples.contact_sheet import SIDE, contact_sheet
from vfm.data.samples.sample import CURES
from vfm.eval import check_finite, read_embeddings
from vfm.eval.encode.embeddings import SavedEmbeddings
from vfm.interfaces import Artifact
from vfm.models import PooledVision
from vfm.storage import files

Shown = tuple[Image.Image, str]
"""An image of a sheet, and its caption."""


@dataclass(frozen=True)
class Hit:
    """An entry of the index, with its row, key, text and cosine similarity to the query."""

    row: int
    key: str
    text: str
    score: float


@dataclass(frozen=True, repr=False)
class SearchResult(Results):
    """Result of a search.

    Attributes:
        queries: Texts or paths of images, Q.
        hits: The most similar entries of each query, best first.
        index: The embeddings.
    """

    queries: list[str]
    hits: list[list[Hit]]
    index: SavedEmbeddings

    @property
    def title(self) -> str:
        """One line about the results."""
        return f"best {len(self.hits[0])} of {len(self.index.keys):,} entries for {len(self.queries):,} queries"

    def table(self) -> Any:
        """Build an Arrow table with the columns query, rank (from 1), key, text and similarity."""
        rows: list[dict[str, Any]] = []
        for query, hits in zip(self.queries, self.hits, strict=True):
            for rank, hit in enumerate(hits, start=1):
                rows.append({"query": query, "rank": rank, "key": hit.key, "text": hit.text, "similarity": hit.score})
        return as_table(rows, {})

    def sheet(self, data: str, options: Mapping[str, Any] | None = None) -> Image.Image:
        """Draw a row for each query, with the query itself and the most similar images.

        Args:
            data: The dataset of the index: the folder of an artifact, or a path in any format of `data.pairs`.
            options: Fields of `data.pairs`, as in `open_images`.

        Raises:
            UserError: If there is no such dataset, or it lacks an entry of the index.
        """
        with TemporaryDirectory() as folder:
            source = open_images(data, Path(folder), options)
            cells = []
            for query, hits in zip(self.queries, self.hits, strict=True):
                cells.append(_shown_query(query))
                for hit in hits:
                    cells.append(_shown_hit(source, hit))
        return contact_sheet(cells, columns=1 + len(self.hits[0]))


def search(
    queries: AnyPath | Sequence[AnyPath],
    index: AnyPath,
    *,
    model: AnyPath | Artifact | None = None,
    pretrained: str | None = None,
    top: int = 9,
    device: str = "auto",
    warn: Callable[[str], None] = warnings.warn,
) -> SearchResult:
    """Find the entries of an index that are most similar to texts or images, as `vfm search`.

    Args:
        queries: One or several. Each is an image if such a file exists, else a text.
        index: File of embeddings, written by `vfm embed`.
        model: A model as for `vfm embed`. None: the model that made the index.
        pretrained: Tag of an open_clip name, or a file of weights.
        top: Number of entries for each query.
        device: auto, cpu, cuda, cuda:1 or mps.
        warn: Called with a line if the index was made with another model.

    Raises:
        UserError: If the index, the model or an image does not exist, a text is empty, or the model has no text tower
            to search for it.
    """
    words = [os.fspath(query) for query in ([queries] if isinstance(queries, PATHS) else queries)]
    for query in words:
        _check_query(query)
    file = Path(index)
    known = read_embeddings(file)
    if model is None:
        model, pretrained = _model_of(known, file)
    name = full_name(model, pretrained)
    vectors = _encode(open_encoder(model, pretrained, open_device(device)), name, words)
    check_finite(vectors, name, words)
    best = similarities(vectors, name, known, file, warn).topk(min(top, len(known.keys)))
    hits = []
    for rows, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        hits.append(
            [Hit(row, known.keys[row], known.texts[row], score) for row, score in zip(rows, scores, strict=True)]
        )
    return SearchResult(words, hits, known)


def kept_place(data: str) -> str:
    """Convert the path of a dataset to the form stored in an index.

    The form is valid in any folder and has no credentials.
    """
    parts = []
    for part in data.split("::") if data else []:
        parts.append(redacted(part) if files.is_remote(part) else os.path.abspath(os.path.expanduser(part)))
    return "::".join(parts)


def _check_query(query: str) -> None:
    if not query.strip():
        raise UserError(f"expected words or an image file to search for, got {query!r}")
    if not os.path.isfile(query) and query.lower().endswith(tuple(f".{ending}" for ending in IMAGE_EXTENSIONS)):
        raise UserError(f"{query}: no such image")


def _model_of(known: SavedEmbeddings, index: Path) -> tuple[str, str | None]:
    """Parse the name and the tag of the model that made an index."""
    if not known.model or known.model.startswith("a loaded "):
        raise UserError(f"{index}: the file does not have the name of its model; give --model")
    name, _, tag = known.model.partition(" ")
    if Path(known.model).exists() or not tag:
        return known.model, None
    return name, tag


def _encode(encoder: AnyEncoder, name: str, queries: Sequence[str]) -> Tensor:
    """Encode texts and images as unit vectors, (Q, D)."""
    vectors = []
    for query in queries:
        if os.path.isfile(query):
            vectors.append(encoder.encode_images(read_images([query])))
        elif isinstance(encoder, PooledVision):
            raise UserError(f"{query!r}: no such image, and {name} has no text tower to search by words")
        else:
            vectors.append(encoder.encode_texts([query]))
    return torch.cat(vectors)


def _shown_query(query: str) -> Shown:
    if os.path.isfile(query):
        return read_images([query])[0], Path(query).name
    return Image.new("RGB", (SIDE, SIDE), "gainsboro"), query


def _shown_hit(source: Source, hit: Hit) -> Shown:
    caption = f"{hit.score:.3f}  {hit.text or hit.key}"
    for number in range(hit.row, len(source)):  # skipped samples before it shift it to a larger number
        if source.key(number) == hit.key:
            try:
                return decode_image(source[number].image, hit.key), caption
            except BadSample as bad:
                cure = CURES.get(bad.reason, "")
                raise UserError(f"{source.where(number)}: {bad.reason.replace('_', ' ')}{cure}") from None
    raise UserError(f"no sample has the key {hit.key!r}: --data is not the dataset of the index, or has changed")
